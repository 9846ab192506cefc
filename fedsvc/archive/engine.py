"""Connections to the archive's database, with deadlines on everything."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import aiosqlite
from sqlalchemy import Dialect, Table, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from fedsvc.archive.address import parse
from fedsvc.config import Settings

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

#: seconds to connect, and for one statement
CONNECT_TIMEOUT: Final = 5
STATEMENT_TIMEOUT: Final = 30
#: seconds within which the database must say that it is there
PING_TIMEOUT: Final = 2
#: seconds for one step of a migration, which may write a large table anew; on SQLite, until it is alone
MIGRATION_TIMEOUT: Final = 86_400
_POOL: Final = 5
#: KiB of pages that a connection to SQLite keeps: of the index by host alone, each transaction of the archive
#: writes to as many pages as there are hosts
_SQLITE_CACHE_KIB: Final = 8192


def create_engine(settings: Settings, *, statement_timeout: int = STATEMENT_TIMEOUT) -> AsyncEngine:
    """`statement_timeout`: seconds for one statement. Connects at first use only.

    Raises ConfigurationError.
    """
    url, arguments = parse(settings.database_url, CONNECT_TIMEOUT)
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(
            url,
            # What one has written another must read again, so that the last one used has the most at hand.
            pool_use_lifo=True,
            connect_args={"timeout": statement_timeout, **arguments, "async_creator_fn": _open_sqlite},
        )
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        # To close the connection of somebody who was cancelled twice at the same time would leave a task that
        # waits for ever for the connection's thread, and with it the process. Once waits for one statement.
        engine.dialect.do_terminate = engine.dialect.do_close  # type: ignore[method-assign]
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


def insert_into(table: Table, dialect: Dialect) -> postgresql.Insert | sqlite.Insert:
    """Of both databases, one that can say what becomes of rows that are there."""
    # The one that is not used is a tenth of what a worker imports.
    if dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)


async def _open_sqlite(*arguments: Any, **more: Any) -> aiosqlite.Connection:
    """Whoever is cancelled meanwhile waits until it is open and closed again: its thread would otherwise
    outlive the event loop by a moment, and say so."""
    connection = aiosqlite.connect(*arguments, **more)
    connection._thread.daemon = True  # as SQLAlchemy's own way to connect has it
    opening = asyncio.ensure_future(_opened(connection))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        while not opening.done():  # it is a matter of milliseconds, however often somebody is cancelled
            with suppress(asyncio.CancelledError):
                await asyncio.wait([opening])
        if not opening.cancelled() and opening.exception() is None:
            await connection.close()
        raise


async def _opened(connection: aiosqlite.Connection) -> aiosqlite.Connection:
    return await connection


def _prepare_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # The mode stays with the file. SQLite does not wait for whoever sets it, or works, at this moment.
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode=WAL")
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON", f"cache_size=-{_SQLITE_CACHE_KIB}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
