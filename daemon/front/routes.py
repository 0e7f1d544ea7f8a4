"""Paths to actions. ``POST /v1/agents/{agent}`` is looked for first, since that is what the daemon is for."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from urllib.parse import unquote

from penstock.ipc.messages import Answer, Outcome

from ..core.comebacks import Hold
from ..core.model import Agent
from ..core.refusals import Problem, Refusal
from ..diagnostics.profiler import Profiler
from ..engine.catalogue import Listing
from ..engine.engine import Engine
from ..engine.tickets import Ticket
from . import docs, events, pages
from .access import Guard
from .etags import tagged
from .events import Events
from .exchange import BodyTooLarge, Exchange
from .headers import BadHeader, is_json, priority, request_id, timeout
from .limits import SlowBodyError
from .openapi import Document
from .operations import CALL, Route
from .problems import FAILED, problem
from .profiles import ProfileRoutes
from .responses import Raw, Response, problem_response, raw, stream
from .texts import to_json
from .tracecontext import trace_context

AGENTS: Final = "/v1/agents/"
WORKERS: Final = "/v1/workers/"
JSON: Final = "application/json"

GONE: Final = 499
"""Counts requests whose clients left before the answer; it is never sent."""


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

    def __init__(self, engine: Engine, administration: Administration, feed: Events, max_body: int) -> None:
        self._engine = engine
        self._administration = administration
        self._profiles = ProfileRoutes(administration.profiler)
        self._feed = feed
        self.max_body = max_body
        self.guard: Guard | None = None
        """Who may pass; None where everybody may. May be replaced at any time."""
        self._loop = asyncio.get_running_loop()
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
        given = request_id(exchange.headers)
        if self.guard is not None:
            refused = self.guard.refuse(exchange, path, given)
            if refused is not None:
                return refused
        if path.startswith(AGENTS):
            name = path[len(AGENTS) :]
            if "%" in name:
                name = unquote(name)
            if exchange.method != "POST":
                return await self._choose({"GET": self._agent(name), "POST": self._alive}, exchange, given)
            status = 500
            try:
                response = await self._call(exchange, name, given)
                status = response.status
            except asyncio.CancelledError:
                status = GONE
                raise
            except SlowBodyError:
                status = 408
                raise
            finally:
                # What a client makes up is no agent, and must not become a label.
                if name in self._engine.catalogue:
                    self._engine.observer.responded(name, status)
            return response
        return await self._choose(self._find(path), exchange, given)

    def _find(self, path: str) -> dict[str, Action] | None:
        found = self._fixed.get(path)
        if found is None and path.startswith(WORKERS):
            name, slash, verb = unquote(path[len(WORKERS) :]).partition("/")
            makers = self._of_worker.get(slash + verb)
            return None if makers is None else {method: make(name) for method, make in makers.items()}
        return found

    async def _choose(self, actions: dict[str, Action] | None, exchange: Exchange, given: str) -> Response:
        if actions is None:
            return _problem("not-found", f"there is nothing at {exchange.message.path!r:.200}", given)
        method = "GET" if exchange.method == "HEAD" else exchange.method
        action = actions.get(method)
        if action is None:
            allowed = ", ".join(sorted({*actions, *(["HEAD"] if "GET" in actions else [])}))
            detail = f"{exchange.method!r:.40} is not among the methods of this path: {allowed}"
            return _problem("method-not-allowed", detail, given, extra=f"Allow: {allowed}\r\n")
        return await action(exchange, given)

    # Calls of agents

    async def _call(self, exchange: Exchange, name: str, given: str) -> Raw:
        engine = self._engine
        listing = self._listed(name, given)
        if not isinstance(listing, Listing):
            return listing
        agent = listing.agent
        headers = exchange.headers
        try:
            seconds, own_deadline = timeout(headers, agent.timeout)
        except BadHeader as error:
            return _problem("bad-header", str(error), given, agent=name)
        now = time.monotonic()
        urgency = priority(headers, agent.priority)
        client = exchange.client
        connection = exchange.protocol
        back, fresh, connection.fresh = connection.comeback, connection.fresh, False
        rank = engine.screen(
            agent, client, urgency, seconds=seconds, own_deadline=own_deadline, now=now, back=back, fresh=fresh
        )
        if isinstance(rank, Hold):
            connection.comeback = rank.comeback
            rank = await engine.wait(rank)
        if isinstance(rank, Refusal):
            connection.comeback = rank.comeback
            return self._refused(rank, name, given)
        connection.comeback = None
        wrong = _unsupported(headers, listing.info.raw_body)
        if wrong:
            return _problem("unsupported-media-type", wrong, given, agent=name)
        complete = exchange.payload.is_eof()
        try:
            body = await self._body(exchange, agent, client)
        except BodyTooLarge:
            detail = f"the body is larger than the {self.max_body} bytes that http.max_body allows"
            return _problem("body-too-large", detail, given, agent=name, close=True)
        if isinstance(body, Refusal):
            engine.refused[body.reason, urgency] += 1
            connection.comeback = body.comeback
            return self._refused(body, name, given)
        span = exchange.span
        trace = trace_context(headers) if span is None else span.outgoing
        if not complete:
            now = time.monotonic()
        ticket = Ticket(
            agent,
            now,
            now + seconds,
            request_id=given,
            body=body,
            headers=dict(headers) if listing.info.wants_headers else None,
            priority=urgency,
            client=client,
            affinity=headers.get("Affinity-Key", ""),
            sink=exchange,
            own_deadline=own_deadline,
            rank=rank,
            trace=trace,
        )
        exchange.answered = self._loop.create_future()
        engine.submit(ticket)
        try:
            await exchange.answered
        except asyncio.CancelledError:
            engine.withdraw(ticket)
            raise
        if span is not None:
            span.settled(ticket)
        if isinstance(ticket.outcome, Refusal):
            connection.comeback = ticket.outcome.comeback
        return self._outcome(ticket)

    def _listed(self, name: str, given: str) -> Listing | Raw:
        """The agent of this name, or the answer to who asks for it."""
        engine = self._engine
        if engine.closed:
            return self._refused(Refusal(Problem.UNAVAILABLE, engine.closed), name * (name in engine.catalogue), given)
        listing = engine.catalogue.lookup(name)
        if listing is None:
            return _problem("unknown-agent", f"there is no agent {name!r:.150}", given)
        return listing if isinstance(listing, Listing) else self._refused(listing, "", given)

    async def _body(self, exchange: Exchange, agent: Agent, client: str) -> bytes | Refusal:
        """The body. What has arrived of it counts with what waits, so that slow senders cannot fill the memory."""
        if exchange.payload.is_eof():
            return await exchange.read(self.max_body)
        scheduler = self._engine.scheduler
        length = int(exchange.headers.get("Content-Length", "0"))
        if length > self.max_body:
            raise BodyTooLarge
        refusal = scheduler.room(agent, client, length, time.monotonic())
        if refusal is not None:
            return refusal
        arrived = 0

        def arrive(size: int) -> Refusal | None:
            nonlocal arrived
            refusal = scheduler.reserve(agent, client, size, time.monotonic())
            if refusal is None:
                arrived += size
            return refusal

        try:
            return await exchange.read(self.max_body, arrive)
        finally:
            scheduler.backlog.release(arrived)

    def _outcome(self, ticket: Ticket) -> Raw:
        answer = ticket.outcome
        if isinstance(answer, Refusal):
            # What it cost its worker is not known: nobody waited for that.
            timing = f"Server-Timing: queue;dur={ticket.queued * 1e3:.3f}\r\n"
            return self._refused(answer, ticket.agent.name, ticket.request_id, timing)
        if not isinstance(answer, Answer):
            return _problem("http-error", FAILED, ticket.request_id, agent=ticket.agent.name, status=500)
        timing = _timing(ticket, answer)
        if answer.outcome == Outcome.RESULT:
            return raw(
                answer.status,
                ticket.result,
                answer.content_type,
                ticket.request_id,
                extra=timing,
                headers=answer.headers,
            )
        name, detail = answer.problem, answer.detail
        if answer.outcome == Outcome.CANCELLED:
            name, detail = "agent-error", "the agent cancelled itself"
        if name in ("database-unavailable", "unavailable"):
            timing += "Retry-After: 1\r\n"
        return _problem(name, detail, ticket.request_id, agent=ticket.agent.name, worker=answer.worker, extra=timing)

    def _refused(self, refusal: Refusal, agent: str, given: str, extra: str = "") -> Raw:
        name = refusal.problem.value
        if name in ("overloaded", "throttled", "unavailable"):
            extra += f"Retry-After: {max(1, int(refusal.retry_after + 0.999))}\r\n"
        closing = bool(self._engine.closed)
        return _problem(name, refusal.detail, given, agent=agent, worker=refusal.worker, extra=extra, close=closing)

    # Views

    async def _alive(self, exchange: Exchange, given: str) -> Raw:
        return raw(200, b'{"status":"alive"}', JSON, given)

    async def _ready(self, exchange: Exchange, given: str) -> Raw:
        why = self._engine.ready
        if not why:
            return raw(200, b'{"status":"ready"}', JSON, given)
        status, body = problem("unavailable", why, given)
        return problem_response(status, body, given, extra="Retry-After: 1\r\n")

    async def _agents(self, exchange: Exchange, given: str) -> Raw:
        listings = sorted(self._engine.catalogue.values(), key=lambda listing: listing.agent.name)
        return _json({"agents": [_description(listing) for listing in listings]}, given)

    def _agent(self, name: str) -> Action:
        async def show(exchange: Exchange, given: str) -> Raw:
            listing = self._engine.catalogue.lookup(name)
            if isinstance(listing, Listing):
                return _json(_description(listing), given)
            if listing is None:
                return _problem("unknown-agent", f"there is no agent {name!r:.150}", given)
            return self._refused(listing, "", given)

        return show

    async def _status(self, exchange: Exchange, given: str) -> Raw:
        return _json(self._administration.status(), given)

    async def _metrics(self, exchange: Exchange, given: str) -> Raw:
        body, media_type = self._administration.metrics(exchange.headers.get("Accept", ""))
        return raw(200, body, media_type, given)

    async def _events(self, exchange: Exchange, given: str) -> Response:
        if self._feed.full:
            detail = f"{events.MOST} event streams are being read, which is as many as there may be"
            return _problem("overloaded", detail, given, extra="Retry-After: 10\r\n")
        # The last header keeps nginx, which buffers answers, from doing so here.
        extra = "Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
        return stream(self._feed.read(), events.MEDIA_TYPE, given, extra=extra)

    async def _page(self, exchange: Exchange, given: str) -> Raw:
        return pages.PAGES[exchange.path].answer(exchange, given)

    async def _workers(self, exchange: Exchange, given: str) -> Raw:
        return _json({"workers": self._administration.workers()}, given)

    async def _openapi(self, exchange: Exchange, given: str) -> Raw:
        guard = self.guard
        body, tag = self._document.current(
            self._engine.catalogue,
            secured=guard is not None and guard.secured,
            hide_admin=guard is not None and guard.hide_admin,
        )
        return tagged(exchange, body, tag, JSON, given)

    async def _docs(self, exchange: Exchange, given: str) -> Raw:
        try:
            page = await self._docs_files.get(exchange.path)
        except docs.NotInstalledError as error:
            return _problem("not-found", str(error), given)
        return page.answer(exchange, given)

    def _worker(self, name: str) -> Action:
        async def show(exchange: Exchange, given: str) -> Raw:
            worker = self._administration.worker(name)
            if worker is not None:
                return _json(worker, given)
            return _problem("unknown-worker", f"there is no worker {name!r:.150}", given)

        return show

    def _restart(self, name: str) -> Action:
        async def restart(exchange: Exchange, given: str) -> Raw:
            if self._administration.restart(name):
                return _json({"worker": name, "restarting": True}, given, status=202)
            return _problem("unknown-worker", f"there is no worker {name!r:.150}", given)

        return restart

    async def _reload(self, exchange: Exchange, given: str) -> Raw:
        why = await self._administration.reload()
        if why:
            return _problem("reload-failed", why, given)
        return _json({"reloading": True}, given, status=202)


def _timing(ticket: Ticket, answer: Answer) -> str:
    """Where the time went, as parts that add up: waiting for a worker, the worker, and the database for it."""
    worked = max(0.0, answer.ended_at - answer.taken_at - answer.db)
    timing = f"Server-Timing: queue;dur={ticket.queued * 1e3:.3f}, agent;dur={worked * 1e3:.3f}"
    return f"{timing}, db;dur={answer.db * 1e3:.3f}\r\n" if answer.db else f"{timing}\r\n"


def _general(path: str) -> str:
    """A path, or for a file that a page is made of that of all of them."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{{file}}" if name and f"{folder}/" in (f"{docs.PAGE}/", pages.FOLDER) else path


def _unsupported(headers: Any, raw_body: bool) -> str:
    """Why the body's encoding or media type cannot be taken; empty if it can."""
    encoding = headers.get("Content-Encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        return f"Content-Encoding {encoding!r:.60} is not supported; send the body as it is (identity)"
    kind = headers.get("Content-Type")
    if kind is None or kind == JSON or raw_body or is_json(kind):
        return ""
    return f"Content-Type {kind!r:.80} is not JSON, and this agent takes JSON (application/json, or no Content-Type)"


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
        "database": bool(info.database),
        "body_schema": info.body_schema,
        "result_schema": info.result_schema,
    }


def _json(value: Any, given: str, status: int = 200) -> Raw:
    return raw(status, to_json(value), JSON, given)


def _problem(
    name: str,
    detail: str,
    given: str,
    *,
    agent: str = "",
    worker: str = "",
    extra: str = "",
    close: bool = False,
    status: int = 0,
) -> Raw:
    status, body = problem(name, detail, given, agent=agent, worker=worker, status=status)
    response = problem_response(status, body, given, extra=extra, close=close)
    response.problem = name
    return response
