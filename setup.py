"""Packaging. The folders daemon/, ipc/ and workers/ are the packages penstock.daemon, penstock.ipc, penstock.workers.

Bare ``daemon`` and ``workers`` would clash with other distributions and with users' own packages, so they are mapped
into the namespace ``penstock``; this file is the only place that knows. Metadata and tool settings: pyproject.toml.
"""

from setuptools import find_packages, setup

ROOTS = ("daemon", "ipc", "workers")

setup(
    package_dir={f"penstock.{root}": root for root in ROOTS},
    packages=[
        name
        for root in ROOTS
        for name in (f"penstock.{root}", *(f"penstock.{root}.{sub}" for sub in find_packages(root)))
    ],
    package_data={"": ["py.typed", "*.html", "*.css", "*.js", "*.svg"]},
)
