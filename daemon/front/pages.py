"""The dashboard's files, as they are served: from memory, and with headers that let a browser load nothing else.

Where tokens are configured, a browser cannot bring one when it loads a page. Then ``/`` is answered 401 with a page of
its own (``dashboard/login.html``): it asks for the token, keeps it in the session storage of the tab, fetches the files
of the dashboard with it and puts them in its own place. Its policy allows inline just what this module knows by its
hash: its own script and style, and those of the dashboard. So without a token nothing is served but that page.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from typing import Final

from .etags import entity_tag, tagged
from .exchange import Exchange
from .responses import Raw, raw

HOME: Final = "/"
FOLDER: Final = "/dashboard/"

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_ISOLATED: Final = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
_INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class Page:
    """One file in memory, with the head of its answer."""

    def __init__(self, body: bytes, content_type: str, policy: str) -> None:
        self.body = body
        self._type = content_type
        self._tag = entity_tag(body)
        self._extra = (
            f"Content-Security-Policy: {policy}\r\n"
            "X-Content-Type-Options: nosniff\r\n"
            "Referrer-Policy: no-referrer\r\n"
            "Cross-Origin-Opener-Policy: same-origin\r\n"
            "Cross-Origin-Resource-Policy: same-origin\r\n"
        )

    def answer(self, exchange: Exchange, request_id: str) -> Raw:
        """The file, or 304 if the client has it."""
        return tagged(exchange, self.body, self._tag, self._type, request_id, self._extra)

    def refuse(self, request_id: str) -> Raw:
        """The page as the body of a 401."""
        extra = f"WWW-Authenticate: Bearer\r\nCache-Control: no-store\r\n{self._extra}"
        return raw(401, self.body, self._type, request_id, extra=extra)


def _load() -> tuple[dict[str, Page], Page]:
    """What is served by its path, and the page for those without a token."""
    folder = resources.files(__package__) / "dashboard"
    files = {each.name: each.read_bytes() for each in folder.iterdir() if each.name.rpartition(".")[2] in _TYPES}
    login = files.pop("login.html")
    icon = base64.b64encode(files["icon.svg"]).decode()
    login = login.replace(b"/dashboard/icon.svg", f"data:image/svg+xml;base64,{icon}".encode())
    policy = f"default-src 'self'; {_ISOLATED}"
    served = {
        HOME if name == "index.html" else FOLDER + name: Page(body, _TYPES[name.rpartition(".")[2]], policy)
        for name, body in files.items()
    }
    return served, Page(login, _TYPES["html"], _login_policy(login, files))


def _login_policy(login: bytes, files: Mapping[str, bytes]) -> str:
    """Allows what is inline in the page, and what is in the dashboard's files when it has put that inline."""
    allowed: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(login.decode()):
        allowed[kind].append(_hash(text.encode()))
    for name, body in files.items():
        if name.endswith((".js", ".css")):
            allowed["script" if name.endswith(".js") else "style"].append(_hash(body))
    scripts, styles = " ".join(allowed["script"]), " ".join(allowed["style"])
    return (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {scripts}; style-src {styles}; {_ISOLATED}"
    )


def _hash(text: bytes) -> str:
    """How a policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


PAGES, LOGIN = _load()
