"""Brings the archive's schema up to date. The migrations are part of the package."""

from __future__ import annotations

import asyncio
import sqlite3
from importlib.resources import files

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from fedsvc.archive.engine import MIGRATION_TIMEOUT, create_engine
from fedsvc.archive.revision import current_revision, newer
from fedsvc.archive.trouble import trouble
from fedsvc.config import Settings
from fedsvc.errors import ArchiveUnavailable

#: tries, and seconds between them
_TRIES = 40
_PAUSE = 0.25


class _Busy(Exception):
    """Another process has locked the database."""


def upgrade(settings: Settings) -> str:
    """Migrate to the newest revision and return it; a newer version's is left as it is. Several at once wait
    for each other.

    Raises ArchiveUnavailable, ConfigurationError.
    """
    return asyncio.run(_run(settings, "head"))


def downgrade(settings: Settings, revision: str) -> str:
    """Migrate back to `revision` (`base` for an empty database)."""
    return asyncio.run(_run(settings, revision, down=True))


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
            return await connection.run_sync(current_revision) or ""
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        problem = getattr(error, "orig", None) or error
        if isinstance(problem, sqlite3.OperationalError) and "locked" in str(problem):
            raise _Busy from None
        raise ArchiveUnavailable(trouble(error)) from None
    finally:
        await engine.dispose()


def _migrate(connection: Connection, revision: str, down: bool) -> None:
    config = _config()
    config.attributes["connection"] = connection
    current = current_revision(connection)
    if down:
        command.downgrade(config, revision)
    elif current is None or not newer(current):
        command.upgrade(config, revision)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("fedsvc.archive") / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
