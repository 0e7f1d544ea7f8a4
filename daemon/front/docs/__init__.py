"""``/docs``: a page to try the agents, and the files it is made of. Nothing of it comes from elsewhere.

Swagger UI itself is in the distribution ``flask-swagger-ui``, which follows each release of it within days. It brings
Flask and six more, so it is an extra (``penstock[docs]``); the distributions without a framework lag behind, or weigh
several times as much. Its files are read and its code is not: the module is found and never run. Without it the page
says what to install.

Where tokens are asked for, the browser could not bring one with the request for the page. So the page is the body of
the 401, asks its reader for a token, and keeps it until the tab is closed; it holds nothing of this daemon. Its files
are open, and ``/openapi.json`` and the agents are not. The policy in the headers confines it to this origin; Swagger UI
writes ``style`` attributes, which is why those are allowed.

Files are read once, in a thread, and kept: clients that do not take their answers share the one copy (2 MB).
"""

from __future__ import annotations

import asyncio
import importlib.resources
import importlib.util
from importlib.resources.abc import Traversable
from typing import Final

from ..pages import Page
from ..tokens import DOCS

PAGE: Final = DOCS.rstrip("/")
BUNDLE: Final = "flask_swagger_ui"

_OWN: Final = {"index.html": "text/html; charset=utf-8", "start.css": "text/css", "start.js": "text/javascript"}
_THEIRS: Final = {
    "favicon-32x32.png": "image/png",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css",
}
FILES: Final = _OWN | _THEIRS
"""Everything there is, with its media type."""

PATHS: Final = frozenset({PAGE, *(f"{DOCS}{name}" for name in FILES if name != "index.html")})

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class NotInstalledError(Exception):
    """Swagger UI is not there. One line that says what to install."""


class Files:
    """The files, by their paths."""

    def __init__(self) -> None:
        self._read: dict[str, Page] = {PAGE: INDEX}

    async def get(self, path: str) -> Page:
        """One of ``PATHS``; ``NotInstalledError`` if it is Swagger UI's. Installed later, it is found then."""
        found = self._read.get(path)
        if found is None:
            found = self._read[path] = await asyncio.to_thread(_page, path.removeprefix(DOCS))
        return found


def _page(name: str) -> Page:
    return Page(_source(name).read_bytes(), FILES[name], _POLICY)


def _source(name: str) -> Traversable:
    if name in _OWN:
        return importlib.resources.files(__package__) / name
    spec = importlib.util.find_spec(BUNDLE)
    if spec is None:
        raise NotInstalledError("Swagger UI is not installed with this daemon: pip install 'penstock[docs]'")
    return importlib.resources.files(importlib.util.module_from_spec(spec)) / "dist" / name


INDEX: Final = _page("index.html")
