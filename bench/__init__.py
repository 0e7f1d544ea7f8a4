"""Measurements. Each is run from the root of the repository, ``python -m bench.NAME``: see README.rst beside this."""
