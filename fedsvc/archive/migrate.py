"""Brings the archive's schema up to date. The migrations are part of the package."""

from __future__ import annotations

import asyncio
import sqlite3
from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from fedsvc.archive.engine import CONNECT_TIMEOUT, MIGRATION_TIMEOUT, create_engine
from fedsvc.config import Settings
from fedsvc.errors import ArchiveUnavailable

#: tries, and seconds between them
_TRIES = 40
_PAUSE = 0.25
_NEVER_MIGRATED = "the database is not migrated: run `fedsvc migrate`"


class _Busy(Exception):
    """Another process has locked the database."""


def upgrade(settings: Settings) -> str:
    """Migrate to the newest revision and return it. Several at once wait for each other.

    Raises ArchiveUnavailable, ConfigurationError.
    """
    return asyncio.run(_run(settings, "head"))


def downgrade(settings: Settings, revision: str) -> str:
    """Migrate back to `revision` (`base` for an empty database)."""
    return asyncio.run(_run(settings, revision, down=True))


def head_revision() -> str:
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


async def check(engine: AsyncEngine) -> None:
    """Raises ArchiveUnavailable if the schema is missing or not the one of this version, or if the database
    does not say so within seconds."""
    try:
        async with asyncio.timeout(2 * CONNECT_TIMEOUT), engine.connect() as connection:
            current = await connection.run_sync(_current)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise ArchiveUnavailable(f"the database does not answer: {type(error).__name__}") from None
    if current is None:
        raise ArchiveUnavailable(_NEVER_MIGRATED)
    if current != head_revision():
        raise ArchiveUnavailable(f"the database is at revision {current}: run `fedsvc migrate`")


async def _run(settings: Settings, revision: str, *, down: bool = False) -> str:
    # SQLite does not wait for another process that is just making the file what it is to be.
    for _ in range(_TRIES):
        try:
            return await _try(settings, revision, down)
        except _Busy:
            await asyncio.sleep(_PAUSE)
    raise ArchiveUnavailable("the database is locked by another process")


async def _try(settings: Settings, revision: str, down: bool) -> str:
    engine = create_engine(settings, statement_timeout=MIGRATION_TIMEOUT)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate, revision, down)
            await connection.commit()
            return await connection.run_sync(_current) or ""
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        problem = getattr(error, "orig", None) or error
        if isinstance(problem, sqlite3.OperationalError) and "locked" in str(problem):
            raise _Busy from None
        raise ArchiveUnavailable(f"the database does not answer: {type(problem).__name__}") from None
    finally:
        await engine.dispose()


def _migrate(connection: Connection, revision: str, down: bool) -> None:
    config = _config()
    config.attributes["connection"] = connection
    if down:
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("fedsvc.archive") / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
