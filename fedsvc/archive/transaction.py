"""One transaction with the archive's database: within a deadline, and with errors of ours only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from fedsvc.archive.engine import STATEMENT_TIMEOUT
from fedsvc.errors import ArchiveUnavailable


@asynccontextmanager
async def transaction(
    engine: AsyncEngine, seconds: float = STATEMENT_TIMEOUT
) -> AsyncIterator[AsyncConnection]:
    """Committed at the end of the block, rolled back if it raises.

    Raises ArchiveUnavailable, which never shows a statement or its values, if the database refuses or has
    not done all of it within `seconds`.
    """
    try:
        async with asyncio.timeout(seconds), engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise ArchiveUnavailable(f"the database refuses: {type(error.orig).__name__}") from None
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise ArchiveUnavailable(f"the database does not answer: {type(error).__name__}") from None
