"""One transaction with the archive's database: within a deadline, and with errors of ours only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from fedsvc.archive.engine import STATEMENT_TIMEOUT
from fedsvc.archive.trouble import kind, trouble
from fedsvc.errors import ArchiveUnavailable
from fedsvc.metrics import SQL_ERRORS

#: classes of SQLSTATE in which PostgreSQL refuses the values rather than the statement: bad data, a
#: constraint, too large for a row or an index
_DATA_CLASSES: Final = ("22", "23", "54")


class DataRefused(ArchiveUnavailable):
    """The database answers, but refuses something of what it was given; it would refuse it again."""


@asynccontextmanager
async def transaction(
    engine: AsyncEngine, seconds: float = STATEMENT_TIMEOUT
) -> AsyncIterator[AsyncConnection]:
    """Committed at the end of the block, rolled back if it raises.

    Raises DataRefused for values that the database does not hold, and ArchiveUnavailable if it refuses
    otherwise or has not done all of it within `seconds`. Neither shows a statement or its values.
    """
    try:
        async with asyncio.timeout(seconds), engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        SQL_ERRORS.inc()
        raise (DataRefused if _is_of_data(error) else ArchiveUnavailable)(trouble(error)) from None
    except StatementError as error:  # a value that could not even be made ready to be sent
        raise DataRefused(f"the database cannot hold it: {kind(error)}") from None
    except (OverflowError, UnicodeError) as error:  # SQLite's driver lets them through
        raise DataRefused(f"the database cannot hold it: {type(error).__name__}") from None
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        SQL_ERRORS.inc()
        raise ArchiveUnavailable(trouble(error)) from None


def _is_of_data(error: DBAPIError) -> bool:
    # asyncpg's data errors reach SQLAlchemy as nothing more than errors: their SQLSTATE tells them apart.
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return isinstance(error, DataError | IntegrityError)
    return str(state).startswith(_DATA_CLASSES)
