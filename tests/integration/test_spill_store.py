"""Batches of parked deliveries in SQL, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from servers.migrated import prepare
from servers.postgres import postgres_server
from sqlalchemy import func, select

from fedsvc.archive import migrate
from fedsvc.archive.archive import Archive
from fedsvc.archive.engine import create_engine
from fedsvc.archive.spill_store import SpilledDelivery, SpilledMessage, SpillStore, message_number
from fedsvc.archive.tables import (
    deliveries,
    spilled_batches,
    spilled_deliveries,
    spilled_messages,
    spilled_needs,
)
from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState, Priority
from fedsvc.errors import ArchiveUnavailable
from fedsvc.queue.record import Record

HOST = "down.example"
TABLES = (spilled_batches, spilled_deliveries, spilled_messages, spilled_needs)
LARGEST = 2**53 - 1


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings.from_environment({"DATABASE_URL": database_url})


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[SpillStore]:
    await asyncio.to_thread(prepare, settings)
    store = SpillStore(create_engine(settings))
    async with store.engine.begin() as connection:
        for table in TABLES:
            await connection.execute(table.delete())
    yield store
    await store.engine.dispose()


def delivery(sequence: int, *, message: int = 1, partition: int = 3, attempts: int = 0) -> SpilledDelivery:
    record = Record(
        DeliveryState.PARKED, 0, Priority.NORMAL, 1, attempts, 0, 1_800_000_000, message, 0,
        f"https://{HOST}/users/{sequence}/inbox",
    )  # fmt: skip
    return SpilledDelivery(DeliveryId(partition, sequence), record.pack(sequence // 1000), 4_294_967_295)


def message(number: int, size: int = 300) -> SpilledMessage:
    return SpilledMessage(number, bytes([number % 256, 0]) * (size // 2), b"fields\xff", b"identity\0")


async def rows(store: SpillStore) -> list[int]:
    """How many there are in each table."""
    async with store.engine.connect() as connection:
        return [
            (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for table in TABLES
        ]


def test_the_message_of_a_record_is_found_where_the_queue_puts_it() -> None:
    assert message_number(delivery(7, message=LARGEST).record) == LARGEST
    assert message_number(b"short") == 0


async def test_a_batch_is_read_as_it_was_written(store: SpillStore) -> None:
    deliveries = [delivery(LARGEST, message=LARGEST), *(delivery(n) for n in range(2500, 0, -1))]
    messages = [message(LARGEST), message(1), message(2, 1_000_000)]
    await store.write(3, LARGEST, HOST, deliveries, messages)
    assert await store.read(3, LARGEST) == (
        HOST,
        deliveries[:0:-1] + deliveries[:1],
        messages[1:] + messages[:1],
    )
    assert await store.read(4, LARGEST) is None
    assert await store.read(3, 1) is None


async def test_a_batch_that_is_written_again_changes_nothing(store: SpillStore) -> None:
    for _ in range(2):
        await store.write(3, 10, HOST, [delivery(1), delivery(2)], [message(1)])
    assert await rows(store) == [1, 2, 1, 1]


async def test_a_batch_that_is_written_with_other_content_has_both(store: SpillStore) -> None:
    await store.write(3, 10, HOST, [delivery(1), delivery(2)], [message(1)])
    tried = delivery(2, attempts=1)
    await store.write(3, 10, HOST, [tried, delivery(3, message=2)], [message(1), message(2)])
    assert await store.read(3, 10) == (
        HOST, [delivery(1), tried, delivery(3, message=2)], [message(1), message(2)],
    )  # fmt: skip


async def test_a_body_is_kept_once_and_as_long_as_a_batch_needs_it(store: SpillStore) -> None:
    for batch in (10, 11, 12):
        await store.write(3, batch, HOST, [delivery(batch)], [message(1), message(batch)])
    await store.write(4, 10, HOST, [delivery(1, partition=4)], [message(1)])
    assert await rows(store) == [4, 4, 5, 7]
    await store.delete(3, 11)
    await store.delete(3, 10)
    assert await store.read(3, 12) == (HOST, [delivery(12)], [message(1), message(12)])
    assert await store.batches(3) == [12]
    await store.delete(3, 12)
    await store.delete(3, 12)
    assert await store.batches(3) == []
    assert await rows(store) == [1, 1, 1, 1], "the other partition's are its own"
    assert await store.read(4, 10) == (HOST, [delivery(1, partition=4)], [message(1)])


async def test_batches_are_told_in_order(store: SpillStore) -> None:
    for batch in (10, LARGEST, 9):
        await store.write(3, batch, HOST, [], [])
    assert await store.batches(3) == [9, 10, LARGEST]
    assert await store.read(3, 9) == (HOST, [], [])


async def test_deliveries_are_found_by_id(store: SpillStore) -> None:
    await store.write(3, 10, HOST, [delivery(n) for n in range(1, 3000)], [message(1)])
    await store.write(4, 10, HOST, [delivery(5, partition=4, message=2)], [message(2)])
    wanted = [DeliveryId(3, n) for n in range(4000, 0, -1)] + [DeliveryId(4, 5), DeliveryId(5, 5)]
    assert await store.find(wanted) == [
        *((delivery(n), message(1), 10) for n in range(1, 3000)),
        (delivery(5, partition=4, message=2), message(2), 10),
    ]
    assert await store.find([]) == []


async def test_of_a_delivery_in_two_batches_the_later_is_told(store: SpillStore) -> None:
    for batch in (11, 10):
        await store.write(3, batch, HOST, [delivery(1, attempts=batch)], [message(1)])
    assert await store.find([DeliveryId(3, 1)]) == [(delivery(1, attempts=11), message(1), 11)]


def outcome(sequence: int, number: int, partition: int = 3) -> Delivery:
    return Delivery(
        DeliveryId(partition, sequence), DeliveryState.DELIVERED, "https://me.example/1", "Like",
        "https://me.example/u/a", f"https://{HOST}/inbox", HOST, "me.example", "https://me.example/u/a#k",
        Priority.BULK, outcome=number,
    )  # fmt: skip


async def test_what_has_ended_since_its_batch_was_made_is_told_from_what_had_ended_before(
    store: SpillStore,
) -> None:
    archive = Archive(store.engine)
    async with store.engine.begin() as connection:
        await connection.execute(deliveries.delete())
    await store.write(3, 100, HOST, [delivery(n) for n in range(1, 6)], [message(1)])
    await store.write(3, 200, HOST, [delivery(n) for n in range(4, 8)], [message(1)])
    await archive.record([outcome(1, 99), outcome(2, 101), outcome(4, 150), outcome(5, 250)])
    await archive.record([outcome(3, 300, partition=4), outcome(90, 300)])
    assert await store.ended(3, 100) == {2, 4, 5}
    assert await store.ended(3, 200) == {5}
    assert await store.ended(3, 300) == await store.ended(4, 100) == set()


async def test_a_body_that_one_batch_gives_up_is_there_for_another_that_takes_it_on(
    store: SpillStore,
) -> None:
    """Many times at once: each batch is written while the one before it, with the same body, goes."""
    await store.write(3, 1, HOST, [delivery(1)], [message(1)])
    for batch in range(2, 30):
        await asyncio.gather(
            store.write(3, batch, HOST, [delivery(batch)], [message(1)]), store.delete(3, batch - 1)
        )
        assert await store.read(3, batch) == (HOST, [delivery(batch)], [message(1)])
    assert await rows(store) == [1, 1, 1, 1]


async def test_a_batch_is_kept_whole_or_not_at_all(store: SpillStore) -> None:
    impossible = SpilledMessage(2, b"", b"", None)  # type: ignore[arg-type]
    with pytest.raises(ArchiveUnavailable):
        await store.write(3, 10, HOST, [delivery(1)], [message(1), impossible])
    assert await rows(store) == [0, 0, 0, 0]


async def test_a_database_that_is_away_is_told(postgres_template: Path) -> None:
    with postgres_server(postgres_template) as postgres:
        settings = Settings.from_environment({"DATABASE_URL": postgres.url})
        await asyncio.to_thread(migrate.upgrade, settings)
        store = SpillStore(create_engine(settings))
        await store.write(3, 10, HOST, [delivery(1)], [message(1)])
        await asyncio.to_thread(postgres.stop)
        for call in (
            store.write(3, 11, HOST, [], []),
            store.read(3, 10),
            store.ended(3, 10),
            store.delete(3, 10),
            store.batches(3),
            store.find([DeliveryId(3, 1)]),
        ):
            with pytest.raises(ArchiveUnavailable):
                await call
        await asyncio.to_thread(postgres.start)
        assert await store.read(3, 10) == (HOST, [delivery(1)], [message(1)])
        await store.engine.dispose()
