"""Connections to the archive's database, with deadlines on everything."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import URL, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError

#: seconds to connect, and for one statement
CONNECT_TIMEOUT: Final = 5
STATEMENT_TIMEOUT: Final = 30
#: seconds within which the database must say that it is there
PING_TIMEOUT: Final = 2
_POOL: Final = 5


def async_url(database_url: str) -> URL:
    """`sqlite:///PATH` or `postgresql://...` for the async drivers. Raises ConfigurationError, which never
    shows a password."""
    try:
        url = make_url(database_url)
    except (ArgumentError, ValueError):
        raise ConfigurationError("DATABASE_URL", "is not a database URL") from None
    family = url.drivername.split("+", 1)[0]
    if family == "sqlite":
        if not url.database or url.database == ":memory:":
            raise ConfigurationError("DATABASE_URL", "names no file: expected sqlite:///PATH")
        return url.set(drivername="sqlite+aiosqlite")
    if family in ("postgresql", "postgres"):
        query = dict(url.query)
        # libpq's name for what asyncpg calls ssl; the values are the same
        if "sslmode" in query:
            query["ssl"] = query.pop("sslmode")
        return url.set(drivername="postgresql+asyncpg", query=query)
    raise ConfigurationError("DATABASE_URL", f"{family} is not supported: use sqlite or postgresql")


def create_engine(settings: Settings) -> AsyncEngine:
    """Raises ConfigurationError. Connects at first use only."""
    url = async_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, connect_args={"timeout": STATEMENT_TIMEOUT})
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        return engine
    return create_async_engine(
        url,
        pool_size=_POOL,
        max_overflow=_POOL,
        pool_timeout=CONNECT_TIMEOUT,
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args={"timeout": CONNECT_TIMEOUT, "command_timeout": STATEMENT_TIMEOUT},
    )


def _prepare_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
