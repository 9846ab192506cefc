"""Archiving and purging by hand: outcomes, an archive, and rounds that a test begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import delete, func, select

from fedsvc.archive.archive import Archive
from fedsvc.archive.engine import create_engine
from fedsvc.archive.tables import audit_events, deliveries, events
from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.queue import outcome
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.archival_handler import ArchivalHandler
from fedsvc.worker.archive_purger import ArchivePurger
from fedsvc.worker.beats import Beats
from servers.migrated import prepare
from servers.valkey import ValkeyServer

PARTITIONS = 4
START = 1_763_900_000_000_000


class WatchedArchive(Archive):
    """Knows how many outcomes each transaction had."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(create_engine(settings))
        self.transactions: list[int] = []

    async def record(self, outcomes: Sequence[Delivery]) -> int:
        recorded = await super().record(outcomes)
        self.transactions.append(len(outcomes))
        return recorded


class System:
    """A queue's outcomes, an archive, and what goes between them."""

    def __init__(self, settings: Settings, link: Link) -> None:
        self.settings = settings
        self.link = link
        self.keys = Keys(settings.namespace)
        self.outcomes = OutcomeLog(link, self.keys, settings)
        self.archive = WatchedArchive(settings)
        self.beats = Beats("archive")

    def handler(
        self, name: str = "a", outcomes: OutcomeLog | None = None, affinity: Affinity | None = None
    ) -> ArchivalHandler:
        """Of a worker that knows of no other, if nothing else is said."""
        affinity = affinity or Affinity(name, PARTITIONS)
        return ArchivalHandler(self.settings, outcomes or self.outcomes, self.archive, self.beats, affinity)

    def purger(self, now_ms: int, name: str = "a") -> ArchivePurger:
        return ArchivePurger(
            self.settings, self.outcomes, self.archive, lambda: now_ms, Affinity(name, PARTITIONS)
        )

    async def end(self, partition: int, number: int, state: int = DeliveryState.DELIVERED) -> None:
        """A delivery ends, in the words of the queue; state 0 is no outcome but an event."""
        sequence = START + number
        delivery = Delivery(
            DeliveryId(partition, sequence), DeliveryState.DELIVERED, "https://me.example/1", "Like",
            "https://me.example/u/a", "https://h.example/inbox", f"h{number}.example", "me.example",
            "https://me.example/u/a#k", Priority.NORMAL, 1, Reason.OK, 202,
        )  # fmt: skip
        await self.link.call(
            "XADD", self.keys.partition(partition).outcomes, f"{sequence + 5_000_000}-0",
            "d", sequence if state else 0, "s", int(state),
            "o", outcome.pack(delivery) if state else b'["HOST_DOWN","h.example"]',
        )  # fmt: skip

    async def end_many(self, partition: int, numbers: range) -> None:
        for number in numbers:
            await self.end(partition, number)

    async def positions(self) -> list[int]:
        """Per partition: the number of the delivery up to which all is archived, or less than 0."""
        positions = await asyncio.gather(*(self.outcomes.position(p) for p in range(PARTITIONS)))
        return [max(-1, position - START - 5_000_000) for position in positions]

    async def rows(self) -> int:
        async with self.archive.engine.connect() as connection:
            return (await connection.execute(select(func.count()).select_from(deliveries))).scalar_one()

    async def close(self) -> None:
        await self.archive.close()
        await self.link.close()


@asynccontextmanager
async def opened(database_url: str, valkey: ValkeyServer, namespace: str) -> AsyncIterator[System]:
    """With an archive that is migrated and empty."""
    settings = Settings.from_environment(
        {
            "DATABASE_URL": database_url,
            "REDIS_URL": valkey.url,
            "FEDSVC_NAMESPACE": namespace,
            "FEDSVC_PARTITIONS": str(PARTITIONS),
        }
    )
    await asyncio.to_thread(prepare, settings)
    system = System(settings, Link.from_settings(settings))
    async with system.archive.engine.begin() as connection:
        for table in (deliveries, events, audit_events):
            await connection.execute(delete(table))
    try:
        yield system
    finally:
        await system.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=20)
    assert task.cancelled()
