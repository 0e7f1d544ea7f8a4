"""Agents as the engine lists them, without a worker that reports them."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.daemon.core.model import Agent
from penstock.daemon.engine.catalogue import Listing
from penstock.ipc.messages import AgentInfo


def listing(name: str, body: Any = None, result: Any = None, **more: Any) -> Listing:
    """An agent with these schemas (else any value); what is not given is empty, false or 0."""
    given = {"name": name, "kind": "async", "pool": "default", "timeout": None, **more}
    given |= {"body_schema": {} if body is None else body, "result_schema": {} if result is None else result}
    empty: dict[Any, Any] = {str: "", bool: False, int: 0, float: 0.0}
    values: dict[str, Any] = {
        field.name: given.get(field.name, empty.get(field.type)) for field in msgspec.structs.fields(AgentInfo)
    }
    return Listing(Agent(name, "default"), AgentInfo(**values))
