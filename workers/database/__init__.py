"""The worker's connections to PostgreSQL."""

from .access import dsn, prepare_threshold
from .database import Database
from .holding import Holding, holding
from .metering import AsyncConnection, Connection
from .waiting import PoolTimeout, Unavailable

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
