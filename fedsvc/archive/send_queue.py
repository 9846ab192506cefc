"""The table `send_queue` of PieFed, from which an instance that moves to fedsvc is imported.

PieFed keeps there what is to be tried again: destination (an inbox), destination_domain, actor (the id of the
key that signs), private_key (PEM, in clear), payload (the activity, JSON), created, send_after (naive, UTC),
retries, max_retries, retry_reason. It is read in the order of its ids, and nothing is changed but what is
deleted on request."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import Column, DateTime, Integer, MetaData, Table, Text, delete, func, inspect, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from fedsvc.archive.address import parse
from fedsvc.archive.engine import CONNECT_TIMEOUT
from fedsvc.archive.transaction import transaction
from fedsvc.errors import ConfigurationError

_COLUMNS: Final = {
    "id": Integer,
    "destination": Text,
    "actor": Text,
    "private_key": Text,
    "payload": Text,
    "created": DateTime,
    "send_after": DateTime,
    "retries": Integer,
    "max_retries": Integer,
}
#: columns that tables of older versions may lack
_OPTIONAL: Final = frozenset({"max_retries"})
#: PieFed's default for it
_MAX_RETRIES: Final = 40


@dataclass(frozen=True, slots=True)
class SendQueueRow:
    """One delivery that PieFed would try again. What it says is nobody's to trust."""

    id: int
    destination: str
    #: of the key that signs
    key_id: str
    private_key: str = field(repr=False)
    payload: str
    created: datetime | None
    send_after: datetime | None
    retries: int
    max_retries: int


class SendQueue:
    """Raises ArchiveUnavailable if the database does not answer, ConfigurationError if there is no such
    table."""

    def __init__(self, engine: AsyncEngine, name: str) -> None:
        self._engine, self._name = engine, name
        self._table = Table(name, MetaData(), *(Column(n, kind) for n, kind in _COLUMNS.items()))
        self._present: list[str] = []

    @classmethod
    def open(cls, database_url: str, name: str) -> Self:
        """Raises ConfigurationError, which never shows a password. Connects at first use only."""
        try:
            url, arguments = parse(database_url, CONNECT_TIMEOUT)
        except ConfigurationError as error:
            raise ConfigurationError("--from", error.problem) from None
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise ConfigurationError("--from", f"{url.database} is no file")  # it would be made
        return cls(create_async_engine(url, poolclass=NullPool, connect_args=arguments), name)

    async def close(self) -> None:
        await self._engine.dispose()

    async def check(self) -> None:
        """That it is there, with the columns that are needed."""
        async with transaction(self._engine) as connection:
            found = await connection.run_sync(
                lambda sync: (
                    {column["name"] for column in inspect(sync).get_columns(self._name)}
                    if inspect(sync).has_table(self._name)
                    else None
                )
            )
        if found is None:
            raise ConfigurationError("--table", f"the database has no table {self._name}")
        if missing := set(_COLUMNS) - found - _OPTIONAL:
            raise ConfigurationError("--table", f"{self._name} has no column {min(missing)}: is it PieFed's?")
        self._present = [name for name in _COLUMNS if name in found]

    async def count(self, after: int = 0) -> int:
        """Rows past an id."""
        query = select(func.count()).select_from(self._table).where(self._table.c.id > after)
        async with transaction(self._engine) as connection:
            return int(await connection.scalar(query) or 0)

    async def after(self, id: int, limit: int) -> list[SendQueueRow]:
        """The next rows past an id."""
        return await self._read(self._table.c.id > id, limit)

    async def among(self, ids: Collection[int]) -> list[SendQueueRow]:
        """Those of these rows that are still there."""
        return await self._read(self._table.c.id.in_(ids), len(ids)) if ids else []

    async def delete(self, ids: Collection[int]) -> None:
        if ids:
            async with transaction(self._engine) as connection:
                await connection.execute(delete(self._table).where(self._table.c.id.in_(ids)))

    async def _read(self, where: Any, limit: int) -> list[SendQueueRow]:
        columns = [self._table.c[name] for name in self._present]
        query = select(*columns).where(where).order_by(self._table.c.id).limit(limit)
        async with transaction(self._engine) as connection:
            return await self._rows(connection, query)

    @staticmethod
    async def _rows(connection: AsyncConnection, query: Any) -> list[SendQueueRow]:
        found = (await connection.execute(query)).mappings().all()
        return [
            SendQueueRow(
                id=row["id"],
                destination=row["destination"] or "",
                key_id=row["actor"] or "",
                private_key=row["private_key"] or "",
                payload=row["payload"] or "",
                created=_utc(row["created"]),
                send_after=_utc(row["send_after"]),
                retries=row["retries"] or 0,
                max_retries=_MAX_RETRIES if row.get("max_retries") is None else row["max_retries"],
            )
            for row in found
        ]


def _utc(naive: datetime | None) -> datetime | None:
    """PieFed writes times in UTC that do not say so."""
    return naive if naive is None or naive.tzinfo is not None else naive.replace(tzinfo=UTC)
