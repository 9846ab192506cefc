"""Parked deliveries of hosts that are down for long: kept in SQL, in batches, so that they take no memory of
Redis until their host is back."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Table, and_, delete, exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from fedsvc.archive.engine import insert_into
from fedsvc.archive.tables import deliveries as archived_deliveries
from fedsvc.archive.tables import spilled_batches, spilled_deliveries, spilled_messages, spilled_needs
from fedsvc.archive.transaction import transaction
from fedsvc.domain.delivery import DeliveryId, DeliveryState

#: with a partition's number, an advisory lock of PostgreSQL that nobody else uses in this database
_LOCK: Final = 1_179_866_963
#: ids in one query, and rows in one statement: both databases allow some 32,000 parameters
_ROWS: Final = 1000
#: where a packed record has the number of its message
_MESSAGE: Final = struct.Struct(">10xQ")


@dataclass(frozen=True, slots=True)
class SpilledDelivery:
    id: DeliveryId
    record: bytes  # packed, as Redis had it
    deadline_s: int  # seconds since the epoch: past it the delivery is not tried any more


@dataclass(frozen=True, slots=True)
class SpilledMessage:
    number: int
    body: bytes
    fields: bytes  # packed, as Redis had them
    identity: bytes


def message_number(record: bytes) -> int:
    """The message that a packed record of the queue needs; 0 if it is too short to name one."""
    return int(_MESSAGE.unpack_from(record)[0]) if len(record) >= _MESSAGE.size else 0


class SpillStore:
    """Safe to share. Every method raises ArchiveUnavailable if the database does not answer in time.

    What changes a partition's batches does so one at a time, however many processes there are: a message
    that one batch gives up and another just took on would be lost otherwise. SQLite has one writer anyway.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._postgres = engine.dialect.name == "postgresql"

    async def write(
        self,
        partition: int,
        batch: int,
        host: str,
        deliveries: Sequence[SpilledDelivery],
        messages: Sequence[SpilledMessage],
    ) -> None:
        """Keep a host's deliveries and the messages that they need, in one transaction.

        A batch that is written again changes nothing. One that is written with other content has both,
        each delivery as it was written last: nothing is forgotten but by `delete`.
        """
        async with self._change(partition) as connection:
            await self._insert(
                connection, spilled_batches, [{"partition": partition, "batch": batch, "host": host}]
            )
            await self._insert(
                connection,
                spilled_deliveries,
                [
                    {
                        "partition": partition,
                        "batch": batch,
                        "sequence": delivery.id.sequence,
                        "message": message_number(delivery.record),
                        "deadline_s": delivery.deadline_s,
                        "record": delivery.record,
                    }
                    for delivery in deliveries
                ],
                replaced=("message", "deadline_s", "record"),
            )
            await self._insert(
                connection,
                spilled_messages,
                [
                    {
                        "partition": partition,
                        "number": message.number,
                        "body": message.body,
                        "fields": message.fields,
                        "identity": message.identity,
                    }
                    for message in messages
                ],
            )
            await self._insert(
                connection,
                spilled_needs,
                [{"partition": partition, "number": m.number, "batch": batch} for m in messages],
            )

    async def read(
        self, partition: int, batch: int
    ) -> tuple[str, list[SpilledDelivery], list[SpilledMessage]] | None:
        """The host, its deliveries by sequence and their messages by number; None if there is no such
        batch."""
        b, d, m, n = spilled_batches.c, spilled_deliveries.c, spilled_messages.c, spilled_needs.c
        deliveries = select(d.sequence, d.record, d.deadline_s).where(
            d.partition == partition, d.batch == batch
        )
        messages = (
            select(m.number, m.body, m.fields, m.identity)
            .join_from(
                spilled_needs, spilled_messages, and_(m.partition == n.partition, m.number == n.number)
            )
            .where(n.partition == partition, n.batch == batch)
        )
        # Before all else and again after it: each query sees what is committed by then, and a batch that
        # comes or goes between two of them must not be taken for a smaller one.
        there = select(b.host).where(b.partition == partition, b.batch == batch)
        async with transaction(self.engine) as connection:
            host = (await connection.execute(there)).scalar()
            of_batch = (await connection.execute(deliveries.order_by(d.sequence))).all()
            needed = (await connection.execute(messages.order_by(m.number))).all()
            still = (await connection.execute(there)).scalar()
        if host is None or still is None:
            return None
        return (
            host,
            [SpilledDelivery(DeliveryId(partition, r.sequence), r.record, r.deadline_s) for r in of_batch],
            [SpilledMessage(r.number, r.body, r.fields, r.identity) for r in needed],
        )

    async def ended(self, partition: int, batch: int) -> set[int]:
        """Sequences of those of a batch of which the archive knows that they have ended since it was made."""
        d, e = spilled_deliveries.c, archived_deliveries.c
        query = (
            select(d.sequence)
            .join_from(
                spilled_deliveries,
                archived_deliveries,
                and_(e.partition == d.partition, e.sequence == d.sequence),
            )
            # A dead letter that was replayed before has ended before, too.
            .where(d.partition == partition, d.batch == batch, e.outcome > batch)
        )
        async with transaction(self.engine) as connection:
            return set((await connection.execute(query)).scalars())

    async def endings(
        self, partition: int, deliveries: Sequence[tuple[int, int]]
    ) -> dict[int, DeliveryState]:
        """How deliveries, each a sequence and a batch, have ended since their batch was made, by sequence;
        only those of which the archive knows that."""
        made, e, found = dict(deliveries), archived_deliveries.c, {}
        sequences = sorted(made)
        async with transaction(self.engine) as connection:
            for start in range(0, len(sequences), _ROWS):
                query = select(e.sequence, e.state, e.outcome).where(
                    e.partition == partition, e.sequence.in_(sequences[start : start + _ROWS])
                )
                for row in await connection.execute(query):
                    if row.outcome > made[row.sequence]:
                        found[row.sequence] = DeliveryState(row.state)
        return found

    async def delete(self, partition: int, batch: int) -> None:
        """Forget a batch, and the messages that no other batch needs."""
        b, d, m, n = spilled_batches.c, spilled_deliveries.c, spilled_messages.c, spilled_needs.c
        other = spilled_needs.alias()
        needed_here = select(n.number).where(n.partition == partition, n.batch == batch)
        needed_elsewhere = exists().where(
            other.c.partition == partition, other.c.number == m.number, other.c.batch != batch
        )
        async with self._change(partition) as connection:
            for statement in (
                delete(spilled_batches).where(b.partition == partition, b.batch == batch),
                delete(spilled_deliveries).where(d.partition == partition, d.batch == batch),
                delete(spilled_messages).where(
                    m.partition == partition, m.number.in_(needed_here), ~needed_elsewhere
                ),
                delete(spilled_needs).where(n.partition == partition, n.batch == batch),
            ):
                await connection.execute(statement)

    async def batches(self, partition: int) -> list[int]:
        """Numbers of all batches, ascending."""
        batch = spilled_batches.c.batch
        query = select(batch).where(spilled_batches.c.partition == partition).order_by(batch)
        async with transaction(self.engine) as connection:
            return list((await connection.execute(query)).scalars())

    async def find(self, ids: Sequence[DeliveryId]) -> list[tuple[SpilledDelivery, SpilledMessage, int]]:
        """Those of the deliveries that are here, each with its message and the number of its batch, by id.

        Of a delivery that is in two batches, as when it is on its way back, the later one is told.
        """
        d, m = spilled_deliveries.c, spilled_messages.c
        wanted: dict[int, set[int]] = defaultdict(set)
        for id in ids:
            wanted[id.partition].add(id.sequence)
        query = select(
            d.sequence, d.record, d.deadline_s, d.batch, m.number, m.body, m.fields, m.identity
        ).join_from(
            spilled_deliveries, spilled_messages, and_(m.partition == d.partition, m.number == d.message)
        )
        found: dict[DeliveryId, tuple[SpilledDelivery, SpilledMessage, int]] = {}
        async with transaction(self.engine) as connection:
            for partition in sorted(wanted):
                sequences = sorted(wanted[partition])
                for start in range(0, len(sequences), _ROWS):
                    some = query.where(
                        d.partition == partition, d.sequence.in_(sequences[start : start + _ROWS])
                    ).order_by(d.sequence, d.batch)
                    for r in await connection.execute(some):
                        id = DeliveryId(partition, r.sequence)
                        found[id] = (
                            SpilledDelivery(id, r.record, r.deadline_s),
                            SpilledMessage(r.number, r.body, r.fields, r.identity),
                            r.batch,
                        )
        return list(found.values())

    @asynccontextmanager
    async def _change(self, partition: int) -> AsyncIterator[AsyncConnection]:
        async with transaction(self.engine) as connection:
            if self._postgres:
                await connection.execute(select(func.pg_advisory_xact_lock(_LOCK, partition)))
            yield connection

    async def _insert(
        self,
        connection: AsyncConnection,
        table: Table,
        rows: list[dict[str, Any]],
        replaced: Sequence[str] = (),
    ) -> None:
        """Rows that are there already are left alone, but for the columns named as `replaced`."""
        insert = insert_into(table, self.engine.dialect)
        if replaced:
            statement = insert.on_conflict_do_update(
                index_elements=list(table.primary_key),
                set_={name: insert.excluded[name] for name in replaced},
            )
        else:
            statement = insert.on_conflict_do_nothing()
        for start in range(0, len(rows), _ROWS):
            await connection.execute(statement, rows[start : start + _ROWS])
