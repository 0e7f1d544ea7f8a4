"""The steps of a call that all runners share."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.ipc.messages import Call
from penstock.ipc.scoreboard import Scoreboard

from .batches import Members
from .context import Context, current
from .database.metering import Meter, meter
from .nested import Children, Nested
from .running import Running

if TYPE_CHECKING:
    from .spans import AgentSpans


class Steps:
    """Called by the runners, in the context and on the thread that the call runs in."""

    def __init__(self, board: Scoreboard, spans: AgentSpans | None, nested: Nested) -> None:
        self.board = board
        self._spans = spans
        self._nested = nested

    def prepare(self, run: Running, body: bytes) -> dict[str, Any]:
        """The function's arguments, but for what the database gives (``BadBody``)."""
        binding = run.agent.binding
        run.taken_at = run.taken_at or time.monotonic()
        if binding.database:
            run.meter = run.meter or Meter()
            meter.set(run.meter)
        if run.batch is not None:
            return self._prepare_batch(run, run.batch)
        arguments = binding.decode(body)
        for injection in binding.injections:
            if injection.kind == "context":
                arguments[injection.name] = run.context or self._context(run)
        current.set(run.context or self._context(run))
        return arguments

    def _prepare_batch(self, run: Running, batch: Members) -> dict[str, Any]:
        binding = run.agent.binding
        arguments: dict[str, Any] = {binding.batch: batch.values(binding.batch, binding.decode)}
        for injection in binding.injections:
            if injection.kind == "contexts":
                for each in batch.part:
                    each.context = each.context or self._context_of(run, each.spec, each.cancelled)
                arguments[injection.name] = [each.context for each in batch.part]
        current.set(run.context or self._context(run))
        return arguments

    def connected(self, run: Running, backend_pid: int) -> None:
        """The call has a connection: should this process be killed, its session can be ended."""
        self.board.backend(run.slot, backend_pid)

    def enter(self, run: Running, arguments: dict[str, Any]) -> Any:
        """Mark the call as begun and call the agent's function."""
        now = time.monotonic()
        run.begun_at = run.begun_at or now
        self.board.begin(run.slot, now)
        return self._function(run)(**arguments)

    def _function(self, run: Running) -> Callable[..., Any]:
        return run.agent.function if self._spans is None else self._spans.around(run)

    def _context(self, run: Running) -> Context:
        run.context = self._context_of(run, run.spec, run.cancelled)
        return run.context

    def _context_of(self, run: Running, spec: Call, cancelled: str) -> Context:
        """Of one call: of a batch each has its own, and what any of them asks of others counts for the batch."""
        headers = spec.headers or {}
        if spec.raw_headers:
            headers |= {name: value.decode(errors="surrogateescape") for name, value in spec.raw_headers.items()}
        context = Context(
            agent=spec.agent,
            request_id=spec.request_id,
            client=spec.client,
            headers=headers,
            deadline=spec.deadline,
            traceparent=spec.traceparent,
            tracestate=spec.tracestate,
            asking=partial(self._children, run),
        )
        if cancelled:
            context.cancel(cancelled)
        return context

    def _children(self, run: Running) -> Children:
        if run.children is None:
            run.children = Children(self._nested, run.spec.call, closed=bool(run.cancelled))
        return run.children
