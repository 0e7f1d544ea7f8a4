"""``POST /v1/agents/{agent}``: the request path, from a header that was read to the response.

A request is looked at before its body is read, so that one which is refused costs no more than its header. Then the
exchange becomes the sink of a ticket, and the connection's own task waits for the outcome.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, Protocol

from penstock.ipc.messages import Answer, Outcome

from ..core.comebacks import Hold
from ..core.model import Agent
from ..core.refusals import Problem, Refusal
from ..engine.catalogue import Listing
from ..engine.engine import Engine
from ..engine.tickets import Ticket
from .exchange import BodyTooLarge, Exchange
from .headers import BadHeader, is_json, priority, timeout, wants_events
from .limits import SlowBodyError
from .problems import FAILED
from .responses import JSON, Raw, Response, Stream, problem_response, raw, refusal_response, retry_after, stream
from .streams import StreamedAnswer
from .tracecontext import trace_context

AGENTS: Final = "/v1/agents/"

GONE: Final = 499
"""Counts requests whose clients left before the answer; it is never sent."""


class Observer(Protocol):
    """Who counts responses. Called on the request path: it is quick and raises nothing."""

    def responded(self, agent: str, status: int) -> None:
        """A request for an agent that exists was answered with this HTTP status; 499 if its client had gone before."""


class Calls:
    """Calls agents for clients."""

    def __init__(self, engine: Engine, observer: Observer, max_body: int) -> None:
        self._engine = engine
        self.observer = observer
        self._loop = asyncio.get_running_loop()
        self.max_body = max_body
        """Bytes that a body may have. May be replaced at any time."""

    async def __call__(self, exchange: Exchange, name: str, request_id: str) -> Response:
        """Call the agent of this name."""
        status = 500
        try:
            response = await self._call(exchange, name, request_id)
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
                self.observer.responded(name, status)
        return response

    async def _call(self, exchange: Exchange, name: str, request_id: str) -> Response:
        listing = self._listed(name, request_id)
        if not isinstance(listing, Listing):
            return listing
        agent = listing.agent
        try:
            seconds, own_deadline = timeout(exchange.headers, agent.timeout)
        except BadHeader as error:
            return problem_response("bad-header", str(error), request_id, agent=name)
        now = time.monotonic()
        urgency, client = priority(exchange.headers, agent.priority), exchange.client
        rank = self._screen(exchange, agent, client, urgency, seconds, own_deadline, now)
        if isinstance(rank, Hold):
            exchange.protocol.comeback = rank.comeback
            rank = await self._engine.screening.wait(rank)
        if isinstance(rank, Refusal):
            return self._turned_away(exchange, rank, name, request_id)
        exchange.protocol.comeback = None
        wrong = _unsupported(exchange.headers, listing.info.raw_body)
        if wrong:
            return problem_response("unsupported-media-type", wrong, request_id, agent=name)
        complete = exchange.payload.is_eof()
        try:
            body = await self._body(exchange, agent, client)
        except BodyTooLarge:
            detail = f"the body is larger than the {self.max_body} bytes that http.max_body allows"
            return problem_response("body-too-large", detail, request_id, agent=name, close=True)
        if isinstance(body, Refusal):
            self._engine.refused[body.reason, urgency] += 1
            return self._turned_away(exchange, body, name, request_id)
        if not complete:
            now = time.monotonic()
        headers, span = exchange.headers, exchange.span
        ticket = Ticket(
            agent,
            now,
            now + seconds,
            request_id=request_id,
            body=body,
            headers=dict(headers) if listing.info.wants_headers else None,
            priority=urgency,
            client=client,
            affinity=headers.get("Affinity-Key", ""),
            sink=exchange,
            own_deadline=own_deadline,
            rank=rank,
            trace=trace_context(headers) if span is None else span.outgoing,
        )
        exchange.answered = self._loop.create_future()
        self._prepare_stream(exchange, ticket, listing)
        self._engine.submit(ticket)
        try:
            await exchange.answered
        except asyncio.CancelledError:
            self._give_up(exchange, ticket)
            raise
        return self._settled(exchange, ticket)

    def _listed(self, name: str, request_id: str) -> Listing | Raw:
        """The agent of this name, or the answer to who asks for it."""
        engine = self._engine
        if engine.closed:
            refusal = Refusal(Problem.UNAVAILABLE, engine.closed)
            return self._refused(refusal, name * (name in engine.catalogue), request_id)
        listing = engine.catalogue.lookup(name)
        if listing is None:
            return problem_response("unknown-agent", f"there is no agent {name!r:.150}", request_id)
        return listing if isinstance(listing, Listing) else self._refused(listing, "", request_id)

    def _screen(
        self,
        exchange: Exchange,
        agent: Agent,
        client: str,
        urgency: int,
        seconds: float,
        own_deadline: bool,
        now: float,
    ) -> int | Refusal | Hold:
        connection = exchange.protocol
        back, fresh, connection.fresh = connection.comeback, connection.fresh, False
        return self._engine.screening.screen(
            agent, client, urgency, seconds=seconds, own_deadline=own_deadline, now=now, back=back, fresh=fresh
        )

    def _turned_away(self, exchange: Exchange, refusal: Refusal, agent: str, request_id: str) -> Raw:
        """The connection keeps what its client was told, for the next request on it."""
        exchange.protocol.comeback = refusal.comeback
        return self._refused(refusal, agent, request_id)

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

    def _settled(self, exchange: Exchange, ticket: Ticket) -> Response:
        """The response to a ticket that has its outcome, or whose answer begins."""
        if exchange.span is not None:
            exchange.span.settled(ticket)
        if isinstance(ticket.outcome, Refusal):
            exchange.protocol.comeback = ticket.outcome.comeback
        if exchange.stream is not None:
            if exchange.stream.begun:
                return _streamed(ticket, exchange.stream)
            exchange.stream.close()
        return self._ended(ticket)

    def _ended(self, ticket: Ticket) -> Raw:
        """The response to a ticket that has its outcome."""
        outcome, agent = ticket.outcome, ticket.agent.name
        if isinstance(outcome, Answer):
            return _answered(ticket, outcome)
        if isinstance(outcome, Refusal):
            # What it cost its worker is not known: nobody waited for that.
            timing = f"Server-Timing: queue;dur={ticket.queued * 1e3:.3f}\r\n"
            return self._refused(outcome, agent, ticket.request_id, timing)
        return problem_response("http-error", FAILED, ticket.request_id, agent=agent, status=500)

    # Streams: whom they have to do with

    def _give_up(self, exchange: Exchange, ticket: Ticket) -> None:
        """The client is gone."""
        self._engine.withdraw(ticket)
        if exchange.stream is not None:
            exchange.stream.close()

    def _prepare_stream(self, exchange: Exchange, ticket: Ticket, listing: Listing) -> None:
        """Be ready for a streamed answer, which any agent may give."""
        exchange.open_stream = self._open_stream
        if listing.info.stream:
            ticket.events = wants_events(exchange.headers)
            # From now on its silence is measured.
            exchange.stream = self._open_stream(exchange, ticket)

    def _open_stream(self, exchange: Exchange, ticket: Ticket) -> StreamedAnswer:
        return StreamedAnswer(self._loop, ticket, self, self._engine.scheduler.backlog, exchange.go_on)

    def count(self, streams: int) -> None:
        """So many streams more are being sent."""
        self._engine.streams += streams

    def allow(self, ticket: Ticket, credit: int) -> None:
        """A stream's client has taken so many bytes."""
        self._engine.allow(ticket, credit)

    def withdraw(self, ticket: Ticket) -> None:
        """A stream's client is gone."""
        self._engine.withdraw(ticket)

    def failure(self, ticket: Ticket) -> bytes:
        """The problem that a stream ends with; empty if it ended well."""
        outcome = ticket.outcome
        if isinstance(outcome, Answer) and outcome.outcome == Outcome.RESULT:
            return b""
        return self._ended(ticket).body

    def _refused(self, refusal: Refusal, agent: str, request_id: str, extra: str = "") -> Raw:
        closing = bool(self._engine.closed)
        return refusal_response(refusal, request_id, agent=agent, extra=extra, close=closing)


def _answered(ticket: Ticket, answer: Answer) -> Raw:
    """The response to a call that its worker has ended."""
    timing = _timing(ticket, answer)
    if answer.outcome == Outcome.RESULT:
        return raw(
            answer.status,
            ticket.result,
            answer.content_type or ticket.media_type,
            ticket.request_id,
            extra=timing,
            headers=answer.headers,
        )
    name, detail = answer.problem, answer.detail
    if answer.outcome == Outcome.CANCELLED:
        name, detail = "agent-error", "the agent cancelled itself"
    if name in ("database-unavailable", "unavailable"):
        timing += retry_after(1.0)
    return problem_response(
        name,
        detail,
        ticket.request_id,
        agent=ticket.agent.name,
        worker=answer.worker,
        extra=timing,
    )


def _streamed(ticket: Ticket, answer: StreamedAnswer) -> Stream:
    """The response whose items, or bytes, come one after another."""
    timing = f"Server-Timing: queue;dur={ticket.queued * 1e3:.3f}\r\n"
    head = answer.head
    if head is not None:
        return stream(
            answer, head.content_type, ticket.request_id, status=head.status, extra=timing, headers=head.headers
        )
    # The last header keeps nginx, which buffers answers, from doing so here.
    extra = f"{timing}Cache-Control: no-store\r\nVary: Accept\r\nX-Accel-Buffering: no\r\n"
    return stream(answer, ticket.media_type, ticket.request_id, extra=extra)


def _timing(ticket: Ticket, answer: Answer) -> str:
    """Where the time went, as parts that add up: waiting for a worker, the worker, and the database for it."""
    worked = max(0.0, answer.ended_at - answer.taken_at - answer.db)
    timing = f"Server-Timing: queue;dur={ticket.queued * 1e3:.3f}, agent;dur={worked * 1e3:.3f}"
    return f"{timing}, db;dur={answer.db * 1e3:.3f}\r\n" if answer.db else f"{timing}\r\n"


def _unsupported(headers: Any, raw_body: bool) -> str:
    """Why the body's encoding or media type cannot be taken; empty if it can."""
    encoding = headers.get("Content-Encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        return f"Content-Encoding {encoding!r:.60} is not supported; send the body as it is (identity)"
    kind = headers.get("Content-Type")
    if kind is None or kind == JSON or raw_body or is_json(kind):
        return ""
    return f"Content-Type {kind!r:.80} is not JSON, and this agent takes JSON (application/json, or no Content-Type)"
