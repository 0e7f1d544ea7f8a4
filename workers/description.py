"""An agent as its worker describes it to the supervisor."""

from __future__ import annotations

from penstock.ipc.messages import AgentInfo

from .agent import Definition


def describe(definition: Definition, pool: str) -> AgentInfo:
    """The agent as the supervisor gets to know it."""
    binding, settings = definition.binding, definition.settings
    return AgentInfo(
        name=definition.name,
        module=definition.module,
        doc=definition.doc,
        kind=binding.kind,
        pool=pool,
        idempotent=settings.idempotent,
        timeout=settings.timeout,
        priority=settings.priority,
        max_concurrency=settings.max_concurrency,
        raw_body=binding.raw_body,
        wants_headers=binding.wants_context,
        database=binding.database,
        connection=bool(binding.connection),
        body_schema=binding.body_schema,
        result_schema=binding.result_schema,
        stream=definition.stream,
        batch=settings.batch or 0,
        batch_wait=float(settings.batch_wait),
    )
