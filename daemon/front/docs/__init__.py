"""``/docs``: a page to try the agents, and the files it is made of. Nothing of it comes from elsewhere.

Swagger UI itself is in the distribution ``flask-swagger-ui``, which follows each release of it within days; the
distributions that hold nothing but the files lag behind by years. Its files are read and its code is not: the module is
found and never run, so Flask is installed for it and never imported.

The page and its files hold nothing of this daemon, so they are open where tokens are asked for: the browser could not
bring one with them. ``/openapi.json`` and the agents do ask, and the page asks its reader for a token then, which it
keeps until the tab is closed. The policy in the headers confines it to this origin; Swagger UI writes ``style``
attributes, which is why those are allowed.

Files are read once, in a thread, and kept: clients that do not take their answers share the one copy (2 MB).
"""

from __future__ import annotations

import asyncio
import importlib.resources
import importlib.util
from importlib.resources.abc import Traversable
from typing import Final

from ..etags import entity_tag
from ..tokens import DOCS

PAGE: Final = DOCS
BUNDLE: Final = "flask_swagger_ui"

_OWN: Final = {"index.html": "text/html; charset=utf-8", "start.css": "text/css", "start.js": "text/javascript"}
_THEIRS: Final = {
    "favicon-32x32.png": "image/png",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css",
}
FILES: Final = _OWN | _THEIRS
"""Everything there is, with its media type."""

PATHS: Final = frozenset({PAGE, *(f"{PAGE}/{name}" for name in FILES if name != "index.html")})

HEADERS: Final = (
    "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    "Cross-Origin-Opener-Policy: same-origin\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "X-Content-Type-Options: nosniff\r\n"
)


class Files:
    """The files, by their paths."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[bytes, str, str]] = {}

    async def get(self, path: str) -> tuple[bytes, str, str]:
        """The content, its entity tag and its media type of one of ``PATHS``."""
        name = "index.html" if path == PAGE else path.removeprefix(f"{PAGE}/")
        found = self._read.get(name)
        if found is None:
            body = await asyncio.to_thread(_source(name).read_bytes)
            found = self._read[name] = (body, entity_tag(body), FILES[name])
        return found


def _source(name: str) -> Traversable:
    if name in _OWN:
        return importlib.resources.files(__package__) / name
    spec = importlib.util.find_spec(BUNDLE)
    if spec is None:
        raise FileNotFoundError(f"the package {BUNDLE} is not installed")
    return importlib.resources.files(importlib.util.module_from_spec(spec)) / "dist" / name
