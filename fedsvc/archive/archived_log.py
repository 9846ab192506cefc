"""The log of outcomes and events as SQL has it: for those who follow it from before what Redis holds."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncEngine

from fedsvc.archive.archive import delivery_of, storable
from fedsvc.archive.engine import insert_into
from fedsvc.archive.tables import deliveries, events
from fedsvc.archive.transaction import transaction
from fedsvc.domain.delivery import Delivery
from fedsvc.domain.events import EventType, HostEvent

_LONGEST = 2048


class ArchivedLog:
    """Safe to share. Every method raises ArchiveUnavailable if the database does not answer in time."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._insert = insert_into(events, engine.dialect).on_conflict_do_nothing()

    async def record(self, happened: Sequence[HostEvent]) -> None:
        """Written again, an event changes nothing."""
        rows = [
            {
                "partition": e.partition,
                "number": e.number,
                "type": int(e.type),
                "host": storable(e.host)[:255],
                "detail": storable(e.detail)[:_LONGEST],
            }
            for e in happened
        ]
        async with transaction(self._engine) as connection:
            await connection.execute(self._insert, rows)

    async def read(
        self, partition: int, after: int, until: int, limit: int
    ) -> tuple[list[Delivery | HostEvent], int]:
        """What is past `after` up to `until`, oldest first, and the number up to which that is all. Of a
        delivery that was replayed only the last outcome is there."""
        d, e = deliveries.c, events.c
        outcomes = (
            select(deliveries)
            .where(d.partition == partition, d.outcome > after, d.outcome <= until)
            .order_by(d.outcome)
            .limit(limit)
        )
        happened = (
            select(events)
            .where(e.partition == partition, e.number > after, e.number <= until)
            .order_by(e.number)
            .limit(limit)
        )
        async with transaction(self._engine) as connection:
            ended = [delivery_of(row) for row in (await connection.execute(outcomes)).mappings()]
            told = [
                HostEvent(EventType(r["type"]), partition, r["number"], r["host"], r["detail"])
                for r in (await connection.execute(happened)).mappings()
            ]
        numbered: list[tuple[int, Delivery | HostEvent]] = [(x.outcome, x) for x in ended]
        numbered += [(x.number, x) for x in told]
        numbered.sort(key=lambda pair: pair[0])
        if len(ended) == limit or len(told) == limit:
            numbered = numbered[:limit]  # past this the other may lack some
            until = numbered[-1][0]
        return [entry for _, entry in numbered], until

    async def purge(self, older_than_ms: int, limit: int) -> int:
        """Forget events of before a time (milliseconds since the epoch). Returns how many."""
        oldest = (
            select(events.c.partition, events.c.number)
            .where(events.c.number < older_than_ms * 1000)
            .limit(limit)
            .subquery()
        )
        statement = delete(events).where(
            events.c.number.in_(select(oldest.c.number)), events.c.number < older_than_ms * 1000
        )
        async with transaction(self._engine) as connection:
            return int((await connection.execute(statement)).rowcount)
