"""Access to the routes: which tokens are accepted, and which routes each listener has."""

from __future__ import annotations

from typing import Final

from . import docs, pages
from .exchange import Exchange
from .headers import wants_html
from .responses import Raw, problem_response
from .tokens import ADMIN, Tokens, is_admin, is_open

_FOR_STRANGERS: Final = {pages.HOME: pages.LOGIN, docs.PAGE: docs.INDEX}
"""Pages that a browser gets with the 401, as it cannot bring a token with the request for a page: they ask for it."""


class Guard:
    """Looks at every request of a listener before the routes do."""

    def __init__(self, tokens: Tokens | None, *, hide_admin: bool) -> None:
        """``hide_admin``: there is another listener for the admin routes, and this one does not know them."""
        self._tokens = tokens
        self.hide_admin = hide_admin

    @property
    def secured(self) -> bool:
        """Tokens are asked for."""
        return self._tokens is not None

    def refuse(self, exchange: Exchange, path: str, request_id: str) -> Raw | None:
        """The refusal, or None after noting the client's name in the exchange."""
        if self.hide_admin and is_admin(path):
            return problem_response("not-found", f"there is no resource at {path!r:.200} on this listener", request_id)
        if self._tokens is None or is_open(path):
            return None
        token = self._tokens.bearer(exchange.headers)
        if token is None:
            page = _FOR_STRANGERS.get(path) if exchange.method in ("GET", "HEAD") else None
            if page is not None and wants_html(exchange.headers):
                return page.refuse(request_id)
            what = "is not known" if "Authorization" in exchange.headers else "is missing: Authorization: Bearer TOKEN"
            return problem_response(
                "unauthorized", f"the token {what}", request_id, extra="WWW-Authenticate: Bearer\r\n"
            )
        if not token.allows(path):
            return problem_response("forbidden", f"this path requires a token of scope {ADMIN!r}", request_id)
        exchange.name = token.name
        return None


def guard(tokens: Tokens | None, *, hide_admin: bool) -> Guard | None:
    """A guard where there is something to guard."""
    return Guard(tokens, hide_admin=hide_admin) if tokens is not None or hide_admin else None
