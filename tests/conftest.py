"""Fixtures, by concern, from the files ``fix_*.py`` beside this one."""

pytest_plugins = ["tests.fix_browser", "tests.fix_daemon", "tests.fix_otlp"]
