"""Connections to the archive's database, with deadlines on everything."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from fedsvc.archive.address import parse
from fedsvc.config import Settings

#: seconds to connect, and for one statement
CONNECT_TIMEOUT: Final = 5
STATEMENT_TIMEOUT: Final = 30
#: seconds within which the database must say that it is there
PING_TIMEOUT: Final = 2
#: seconds for one step of a migration, which may write a large table anew; on SQLite, until it is alone
MIGRATION_TIMEOUT: Final = 86_400
_POOL: Final = 5


def create_engine(settings: Settings, *, statement_timeout: int = STATEMENT_TIMEOUT) -> AsyncEngine:
    """`statement_timeout`: seconds for one statement. Connects at first use only.

    Raises ConfigurationError.
    """
    url, arguments = parse(settings.database_url, CONNECT_TIMEOUT)
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, connect_args={"timeout": statement_timeout, **arguments})
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        return engine
    return create_async_engine(
        url,
        pool_size=_POOL,
        max_overflow=_POOL,
        pool_timeout=CONNECT_TIMEOUT,
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args={"command_timeout": statement_timeout, **arguments},
    )


def _prepare_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # The mode stays with the file. SQLite does not wait for whoever sets it, or works, at this moment.
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode=WAL")
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
