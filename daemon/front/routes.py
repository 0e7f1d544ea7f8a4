"""The route table: paths to actions. ``POST /v1/agents/{agent}`` is matched first, since it is the request path."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from urllib.parse import unquote

from ..diagnostics.profiler import Profiler
from ..engine.catalogue import Listing
from ..engine.engine import Engine
from . import docs, events, headers, pages
from .access import Guard
from .calls import AGENTS, Calls
from .etags import tagged
from .events import Events
from .exchange import Exchange
from .openapi import Document
from .operations import CALL, Route
from .profiles import ProfileRoutes
from .responses import JSON, Raw, Response, json_response, problem_response, raw, refusal_response, retry_after, stream

WORKERS: Final = "/v1/workers/"


class Administration(Protocol):
    """What the routes ask of the rest of the daemon."""

    @property
    def profiler(self) -> Profiler:
        """Looks into the processes."""

    def status(self, history_since: float = 0.0) -> dict[str, Any]:
        """Everything there is to see, as plain data for JSON; of history and events what is newer (unix seconds)."""

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the form that this ``Accept`` asks for, and its media type."""

    def workers(self) -> list[dict[str, Any]]:
        """Every worker with its state and load."""

    def worker(self, name: str) -> dict[str, Any] | None:
        """The worker of this name with its state and load; None: there is none."""

    def restart(self, name: str) -> bool:
        """Begin a graceful restart. False: there is no such worker."""

    async def reload(self) -> str:
        """Take new code and configuration. Empty once the new is proven; else why it was not taken."""


Action = Callable[[Exchange, str], Awaitable[Response]]


class Routes:
    """The handler of every request on a listener."""

    def __init__(self, engine: Engine, administration: Administration, feed: Events, calls: Calls) -> None:
        self._engine = engine
        self._calls = calls
        self._administration = administration
        self._profiles = ProfileRoutes(administration.profiler)
        self._feed = feed
        self.guard: Guard | None = None
        """Who may pass; None where everybody may. May be replaced at any time."""
        self._fixed: dict[str, dict[str, Action]] = {
            "/healthz": {"GET": self._alive},
            "/livez": {"GET": self._alive},
            "/readyz": {"GET": self._ready},
            "/metrics": {"GET": self._metrics},
            "/v1/agents": {"GET": self._agents},
            "/v1/status": {"GET": self._status},
            "/v1/events": {"GET": self._events},
            "/v1/workers": {"GET": self._workers},
            "/v1/reload": {"POST": self._reload},
            "/openapi.json": {"GET": self._openapi},
            **{path: {"GET": self._docs} for path in docs.PATHS},
            **{path: {"GET": self._page} for path in pages.PAGES},
        }
        self._of_worker: dict[str, dict[str, Callable[[str], Action]]] = {
            "": {"GET": self._worker},
            "/restart": {"POST": self._restart},
            "/stack": {"GET": lambda name: functools.partial(self._profiles.stack, name)},
            "/profile": {"GET": lambda name: functools.partial(self._profiles.profile, name)},
        }
        """What follows a worker's name in a path."""
        self._docs_files = docs.Files()
        self._document = Document(self.served)

    @property
    def served(self) -> frozenset[Route]:
        """Every route there is, where a variable part of its path is in braces."""
        found = {(method, _general(path)) for path, actions in self._fixed.items() for method in actions}
        for rest, makers in self._of_worker.items():
            found |= {(method, f"{WORKERS}{{name}}{rest}") for method in makers}
        return frozenset({CALL, ("GET", f"{AGENTS}{{agent}}"), *found})

    async def __call__(self, exchange: Exchange) -> Response:
        path = exchange.path
        request_id = headers.request_id(exchange.headers)
        if self.guard is not None:
            refused = self.guard.refuse(exchange, path, request_id)
            if refused is not None:
                return refused
        if path.startswith(AGENTS):
            name = path[len(AGENTS) :]
            if "%" in name:
                name = unquote(name)
            if exchange.method != "POST":
                return await self._choose({"GET": self._agent(name), "POST": self._alive}, exchange, request_id)
            return await self._calls(exchange, name, request_id)
        return await self._choose(self._find(path), exchange, request_id)

    def _find(self, path: str) -> dict[str, Action] | None:
        found = self._fixed.get(path)
        if found is None and path.startswith(WORKERS):
            name, slash, verb = unquote(path[len(WORKERS) :]).partition("/")
            makers = self._of_worker.get(slash + verb)
            return None if makers is None else {method: make(name) for method, make in makers.items()}
        return found

    async def _choose(self, actions: dict[str, Action] | None, exchange: Exchange, request_id: str) -> Response:
        if actions is None:
            return problem_response("not-found", f"there is no resource at {exchange.message.path!r:.200}", request_id)
        method = "GET" if exchange.method == "HEAD" else exchange.method
        action = actions.get(method)
        if action is None:
            allowed = ", ".join(sorted({*actions, *(["HEAD"] if "GET" in actions else [])}))
            detail = f"{exchange.method!r:.40} is not among the methods of this path: {allowed}"
            return problem_response("method-not-allowed", detail, request_id, extra=f"Allow: {allowed}\r\n")
        return await action(exchange, request_id)

    # Views

    async def _alive(self, exchange: Exchange, request_id: str) -> Raw:
        return raw(200, b'{"status":"alive"}', JSON, request_id)

    async def _ready(self, exchange: Exchange, request_id: str) -> Raw:
        why = self._engine.ready
        if not why:
            return raw(200, b'{"status":"ready"}', JSON, request_id)
        return problem_response("unavailable", why, request_id, extra=retry_after(1.0))

    async def _agents(self, exchange: Exchange, request_id: str) -> Raw:
        listings = sorted(self._engine.catalogue.values(), key=lambda listing: listing.agent.name)
        return json_response({"agents": [_description(listing) for listing in listings]}, request_id)

    def _agent(self, name: str) -> Action:
        async def show(exchange: Exchange, request_id: str) -> Raw:
            listing = self._engine.catalogue.lookup(name)
            if isinstance(listing, Listing):
                return json_response(_description(listing), request_id)
            if listing is None:
                return problem_response("unknown-agent", f"there is no agent {name!r:.150}", request_id)
            return refusal_response(listing, request_id, close=bool(self._engine.closed))

        return show

    async def _status(self, exchange: Exchange, request_id: str) -> Raw:
        return json_response(self._administration.status(), request_id)

    async def _metrics(self, exchange: Exchange, request_id: str) -> Raw:
        body, media_type = self._administration.metrics(exchange.headers.get("Accept", ""))
        return raw(200, body, media_type, request_id)

    async def _events(self, exchange: Exchange, request_id: str) -> Response:
        if self._feed.full:
            detail = f"{events.MOST} event streams are being read, which is the limit"
            return problem_response("overloaded", detail, request_id, extra=retry_after(10.0))
        # The last header keeps nginx, which buffers answers, from doing so here.
        extra = "Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
        return stream(self._feed.read(), events.MEDIA_TYPE, request_id, extra=extra)

    async def _page(self, exchange: Exchange, request_id: str) -> Raw:
        return pages.PAGES[exchange.path].answer(exchange, request_id)

    async def _workers(self, exchange: Exchange, request_id: str) -> Raw:
        return json_response({"workers": self._administration.workers()}, request_id)

    async def _openapi(self, exchange: Exchange, request_id: str) -> Raw:
        guard = self.guard
        body, tag = self._document.current(
            self._engine.catalogue,
            secured=guard is not None and guard.secured,
            hide_admin=guard is not None and guard.hide_admin,
        )
        return tagged(exchange, body, tag, JSON, request_id)

    async def _docs(self, exchange: Exchange, request_id: str) -> Raw:
        try:
            page = await self._docs_files.get(exchange.path)
        except docs.NotInstalledError as error:
            return problem_response("not-found", str(error), request_id)
        return page.answer(exchange, request_id)

    def _worker(self, name: str) -> Action:
        async def show(exchange: Exchange, request_id: str) -> Raw:
            worker = self._administration.worker(name)
            if worker is not None:
                return json_response(worker, request_id)
            return problem_response("unknown-worker", f"there is no worker {name!r:.150}", request_id)

        return show

    def _restart(self, name: str) -> Action:
        async def restart(exchange: Exchange, request_id: str) -> Raw:
            if self._administration.restart(name):
                return json_response({"worker": name, "restarting": True}, request_id, status=202)
            return problem_response("unknown-worker", f"there is no worker {name!r:.150}", request_id)

        return restart

    async def _reload(self, exchange: Exchange, request_id: str) -> Raw:
        why = await self._administration.reload()
        if why:
            return problem_response("reload-failed", why, request_id)
        return json_response({"reloading": True}, request_id, status=202)


def _general(path: str) -> str:
    """A path, or for a file that a page is made of that of all of them."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{{file}}" if name and f"{folder}/" in (f"{docs.PAGE}/", pages.FOLDER) else path


def _description(listing: Listing) -> dict[str, Any]:
    info, agent = listing.info, listing.agent
    return {
        "name": info.name,
        "doc": info.doc,
        "module": info.module,
        "kind": info.kind,
        "pool": info.pool,
        "idempotent": info.idempotent,
        "timeout": agent.timeout,
        "priority": info.priority,
        "max_concurrency": info.max_concurrency,
        "batch": info.batch,
        "batch_wait": info.batch_wait,
        "stream": info.stream,
        "database": bool(info.database),
        "body_schema": info.body_schema,
        "result_schema": info.result_schema,
    }
