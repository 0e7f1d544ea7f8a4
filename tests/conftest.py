"""Fixtures, by concern, from the files ``fix_*.py`` beside this one; and how hypothesis draws.

A run of the suite draws the same examples each time, so that it fails for what was changed and for nothing else. To look
for what nobody thought of: ``make test PYTEST='tests/property --hypothesis-profile=explore'``.
"""

from hypothesis import settings

pytest_plugins = ["tests.fix_browser", "tests.fix_daemon", "tests.fix_fleet", "tests.fix_otlp"]

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile("repeatable")
