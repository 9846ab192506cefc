"""What is the matter with the database, without the driver's words, which may quote statements and values."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError


def trouble(error: Exception) -> str:
    """Such as `the database refuses: InvalidPasswordError` (or SQLITE_CANTOPEN), or `the database does not
    answer: ConnectionRefusedError`."""
    refused = isinstance(error, DBAPIError) and error.orig is not None
    return f"the database {'refuses' if refused else 'does not answer'}: {kind(error)}"


def kind(error: Exception) -> str:
    """As the driver itself calls it: SQLAlchemy calls most of what asyncpg raises an Error."""
    found = getattr(error, "orig", None) or error
    name = getattr(found, "sqlite_errorname", None)
    return name if isinstance(name, str) else type(found.__cause__ or found).__name__
