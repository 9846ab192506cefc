"""At which revision the archive's database is, and at which it should be.

Without Alembic, whose import would take a worker a tenth of the time in which it starts.
"""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files
from typing import Final

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from fedsvc.archive.engine import CONNECT_TIMEOUT
from fedsvc.archive.trouble import trouble
from fedsvc.errors import ArchiveUnavailable

_NEVER_MIGRATED: Final = "the database is not migrated: run `fedsvc migrate`"
#: what each migration says of itself
_TOLD: Final = re.compile(r'^(revision|down_revision) = "(\w+)"$', re.MULTILINE)


def head_revision() -> str:
    """The revision that no migration comes after."""
    told = [
        found
        for file in (files("fedsvc.archive") / "migrations" / "versions").iterdir()
        if file.name.endswith(".py")
        for found in _TOLD.findall(file.read_text())
    ]
    followed = {revision for name, revision in told if name == "down_revision"}
    head: str
    (head,) = {revision for name, revision in told if name == "revision"} - followed
    return head


async def check(engine: AsyncEngine) -> None:
    """Raises ArchiveUnavailable if the schema is missing or older than this version, or if the database does
    not say so within seconds. A newer one will do: migrations of a minor version leave everything in place
    that the one before needs, and what is too new altogether is refused by `queue/format.py`."""
    try:
        async with asyncio.timeout(2 * CONNECT_TIMEOUT), engine.connect() as connection:
            current = await connection.run_sync(current_revision)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise ArchiveUnavailable(trouble(error)) from None
    if current is None:
        raise ArchiveUnavailable(_NEVER_MIGRATED)
    if current != head_revision() and not newer(current):
        raise ArchiveUnavailable(f"the database is at revision {current}: run `fedsvc migrate`")


def newer(current: str) -> bool:
    """Whether a later version than this has migrated. Revisions are numbered."""
    return current.isdigit() and int(current) > int(head_revision())


def current_revision(connection: Connection) -> str | None:
    """None for a database that was never migrated."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return None if revision is None else str(revision)
