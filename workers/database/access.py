"""How this process reaches PostgreSQL, for code of agents that connects by itself."""

from __future__ import annotations

from typing import Final

from penstock.ipc.messages import DatabaseAccess

PREPARE_AFTER: Final = 5
"""Executions of a statement after which it is prepared: psycopg's own default."""

_access: DatabaseAccess | None = None


def set_access(access: DatabaseAccess | None) -> None:
    """From now on this is how; None: the database is off."""
    global _access
    _access = access


def dsn() -> str | None:
    """Where PostgreSQL is, for code that connects by itself (a start hook, say); None while the database is off.

    For the embedded server it leaves little to libpq's environment. For that not to count at all, connect by
    ``AsyncConnection.connect`` or ``Connection.connect`` of this module, which are psycopg's otherwise.
    """
    return None if _access is None else _access.dsn


def prepare_threshold() -> int | None:
    """What code that connects by itself passes to psycopg by this name, as ``database.prepared_statements`` says."""
    return PREPARE_AFTER if _access is None or _access.prepared_statements else None
