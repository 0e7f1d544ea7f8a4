"""The trace that a request belongs to, as its client says in ``traceparent`` and ``tracestate`` (W3C Trace Context).

What cannot be read is ignored, as the recommendation says: an unreadable ``traceparent`` takes its ``tracestate``
along, an unreadable ``tracestate`` goes alone. What was read is passed on to the agent; nothing is made up here, so a
request that came without a trace has none, unless spans are on (``front/spans.py``).
"""

from __future__ import annotations

import re
from typing import Final

from multidict import CIMultiDictProxy

Trace = tuple[str, str]
"""``traceparent`` and ``tracestate``, each as the next service is to get it; empty where there is none."""

NONE: Final[Trace] = ("", "")

MEMBERS: Final = 32
"""Entries that a ``tracestate`` may have."""

LENGTH: Final = 512
"""Characters of a ``tracestate`` that are passed on, which is what the recommendation asks for at least."""

LONG: Final = 128
"""Characters from which on an entry is left out first."""

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY: Final = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_MEMBER: Final = re.compile(_KEY + r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_KNOWN_FLAGS: Final = 0x03
"""Sampled, and (from level 2 of the recommendation) that the trace id is random. Others are passed on as 0."""


def trace_context(headers: CIMultiDictProxy[str]) -> Trace:
    """What the client says, if it can be read."""
    if "traceparent" not in headers:
        return NONE
    parents = headers.getall("traceparent")
    parent = traceparent(parents[0]) if len(parents) == 1 else ""
    if not parent:
        return NONE
    return parent, tracestate(",".join(headers.getall("tracestate", ())))


def traceparent(text: str) -> str:
    """In the form of version 00, which is the one that we speak; empty if it cannot be read."""
    match = _PARENT.fullmatch(text)
    if match is None:
        return ""
    version, trace, parent, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace.strip("0") or not parent.strip("0"):
        return ""
    return f"00-{trace}-{parent}-{int(flags, 16) & _KNOWN_FLAGS:02x}"


def tracestate(text: str) -> str:
    """The entries in their order, those beyond ``LENGTH`` left out; empty if it cannot be read."""
    members = [member for each in text.split(",") if (member := each.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > MEMBERS or len(keys) < len(members) or not all(map(_MEMBER.fullmatch, members)):
        return ""
    for place in range(len(members) - 1, -1, -1):
        if len(",".join(members)) > LENGTH and len(members[place]) > LONG:
            del members[place]
    while len(",".join(members)) > LENGTH:
        members.pop()
    return ",".join(members)
