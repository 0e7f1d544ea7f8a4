"""The dashboard, as files for the browser. ``front/pages.py`` serves them; there is no build step.

``index.html`` has the page's structure, ``app.js`` gives each status that ``feed.js`` reads to the parts of the page:
``lanes.js`` (workers), ``cards.js``, ``charts.js`` and ``panel.js`` (one worker, with ``flame.js``). The scripts are
plain ones that share their names, and no modules: ``login.html`` can put them into its own page one after another.
"""
