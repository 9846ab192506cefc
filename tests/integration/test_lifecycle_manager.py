"""What is forgotten, and when it is looked for."""

from __future__ import annotations

import pytest
from servers.queue import PARTITIONS, Queue

from fedsvc.queue.hosts import Hosts
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.beats import Beats
from fedsvc.worker.lifecycle_manager import LifecycleManager
from fedsvc.worker.memory import MemoryWatch


class Watched(OutcomeLog):
    """Knows what it was asked to forget; each partition has as much as a test says."""

    def __init__(self, queue: Queue) -> None:
        super().__init__(queue.link, queue.keys, queue.settings)
        self.trimmed: list[tuple[int, bool]] = []
        self.has: dict[int, int] = {}

    async def trim(self, partition: int, limit: int, *, early: bool = False) -> int:
        self.trimmed.append((partition, early))
        return min(limit, self.has.get(partition, 0))


class Full(MemoryWatch):
    @property
    def short(self) -> bool:
        return True


def manager(queue: Queue, outcomes: OutcomeLog, memory: MemoryWatch, affinity: Affinity) -> LifecycleManager:
    hosts = Hosts(queue.link, queue.keys, queue.settings)
    return LifecycleManager(queue.link, outcomes, hosts, memory, Beats("tidy"), affinity)


@pytest.fixture(autouse=True)
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LifecycleManager, "FORGET", 3600.0)
    monkeypatch.setattr(LifecycleManager, "WHOLE", 3600.0)


async def test_what_has_had_its_time_is_looked_for_now_and_then_and_at_once_if_there_is_more(
    queue: Queue,
) -> None:
    outcomes = Watched(queue)
    outcomes.has[1] = LifecycleManager.BATCH
    lifecycle = manager(queue, outcomes, MemoryWatch(queue.settings), Affinity("a", PARTITIONS))
    assert await lifecycle.round()
    outcomes.has[1] -= 1
    assert not await lifecycle.round()
    assert not await lifecycle.round()
    assert sorted(outcomes.trimmed) == sorted(2 * [(p, False) for p in range(PARTITIONS)])


async def test_while_memory_is_short_all_that_is_archived_is_forgotten_in_each_round(queue: Queue) -> None:
    outcomes = Watched(queue)
    lifecycle = manager(queue, outcomes, Full(queue.settings), Affinity("a", PARTITIONS))
    for _ in range(3):
        await lifecycle.round()
    assert sorted(outcomes.trimmed) == sorted(3 * [(p, True) for p in range(PARTITIONS)])


async def test_workers_share_what_is_to_be_forgotten(queue: Queue) -> None:
    affinity = Affinity("a", PARTITIONS)
    affinity.see({"a", "b"})
    outcomes = Watched(queue)
    await manager(queue, outcomes, MemoryWatch(queue.settings), affinity).round()
    assert {partition for partition, _ in outcomes.trimmed} == affinity.own
