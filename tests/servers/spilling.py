"""A queue whose backlogs go to SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fedsvc.archive.archive import Archive
from fedsvc.archive.engine import create_engine
from fedsvc.archive.spill_store import SpillStore
from fedsvc.archive.tables import metadata
from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryId
from fedsvc.queue.server_info import ServerInfo
from fedsvc.queue.spill import Spill
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.beats import Beats
from fedsvc.worker.memory import MemoryWatch
from fedsvc.worker.spiller import Spiller
from servers.key_ring import KeyRing
from servers.queue import HOUR_MS, Queue, open_queue

HOST = "h0.example"
FULL = ServerInfo("valkey", "8", 80, 80, 80, 1.0, 100, "noeviction", True, True, True)
EMPTY = ServerInfo("valkey", "8", 10, 80, 80, 1.0, 100, "noeviction", True, True, True)


class Desk:
    """A queue with a spiller at hand. Memory is as full as a test says."""

    def __init__(self, queue: Queue, store: SpillStore) -> None:
        self.queue = queue
        self.store = store
        self.spill = Spill(queue.link, queue.keys, queue.settings)
        self.memory = MemoryWatch(queue.settings)
        self.spiller = Spiller(
            self.spill, store, self.memory, Beats("spill"), Affinity("a", queue.settings.partitions)
        )

    async def rounds(self) -> None:
        while await self.spiller.round():
            pass

    async def short(self) -> None:
        """Memory is short for as long as it takes to move all that can go to SQL."""
        self.memory.note(FULL)
        await self.rounds()
        self.memory.note(EMPTY)

    async def down(self, backlog: int) -> list[DeliveryId]:
        """Host 0 is down for an hour, and so many wait for it."""
        queue = self.queue
        for number in range(5):
            await queue.enqueue(f"bad{number}", path=f"/{number}")
            (admitted,) = await queue.admit(100)
            await queue.fail(admitted, wait_ms=1000 * HOUR_MS)
        await queue.pass_time(HOUR_MS)
        sent = []
        for number in range(backlog):
            queued = await queue.enqueue(f"n{number}", kind="Announce", priority=queue.BULK)
            sent.append(queued.id)
        while await self.parked() < backlog - 1:
            for admitted in await queue.admit(100):  # the probe that is due
                await queue.fail(admitted)
        return sent

    async def parked(self) -> int:
        return (await self.queue.conserved()).parked

    async def recover(self) -> list[DeliveryId]:
        """The host answers again and takes all. Returns what it got, in order."""
        queue, got = self.queue, []
        await queue.hosts.seen(HOST)
        idle = 0
        while idle < 20:
            taken = await queue.admit(100)
            idle = 0 if taken else idle + 1
            for admitted in taken:
                got.append(admitted.id)
                await queue.deliver(admitted)
            await self.spiller.round()
            await queue.pass_time(1000)
        return got


async def archive(desk: Desk) -> None:
    """SQL gets what has ended."""
    for partition in range(desk.queue.settings.partitions):
        outcomes, _, _ = await desk.queue.outcomes.read(partition, 0, 10_000)
        await Archive(desk.store.engine).record(outcomes)


async def contents(queue: Queue) -> dict[bytes, bytes]:
    """Everything that the queue has in Redis."""
    names = await queue.link.call("KEYS", f"{queue.settings.namespace}:*")
    return {name: await queue.link.call("DUMP", name) for name in names}


async def put_back(queue: Queue, before: dict[bytes, bytes]) -> None:
    """Redis is restored to an earlier state; its clock is not."""
    await queue.empty()
    for name, value in before.items():
        await queue.link.call("RESTORE", name, 0, value, "REPLACE")
    await queue.pass_time(0)


@asynccontextmanager
async def spilling(url: str, namespace: str, directory: Path) -> AsyncIterator[Desk]:
    settings = Settings.from_environment({"DATABASE_URL": f"sqlite:///{directory}/archive.db"})
    engine = create_engine(settings)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with open_queue(url, namespace) as queue:
            yield Desk(queue, SpillStore(engine))
    finally:
        await engine.dispose()


async def signed_backlog(ring: KeyRing, desk: Desk) -> int:
    """Host 0 is down, and what waits for it is in SQL and needs a registered key, which is there. Returns how
    many that are."""
    await desk.down(1)
    for number in range(150):
        await ring.enqueue(f"n{number}")
    while await desk.parked() < 150:
        for admitted in await ring.queue.admit(100):
            await ring.queue.fail(admitted)
    await desk.short()
    many = (await desk.queue.conserved()).counter("spilled")
    assert many > 100
    return many
