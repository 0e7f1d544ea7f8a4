"""The worker's connections to PostgreSQL."""

from .database import (
    AsyncConnection,
    Connection,
    Database,
    Holding,
    PoolTimeout,
    Unavailable,
    dsn,
    holding,
    prepare_threshold,
)

__all__ = [
    "AsyncConnection",
    "Connection",
    "Database",
    "Holding",
    "PoolTimeout",
    "Unavailable",
    "dsn",
    "holding",
    "prepare_threshold",
]
