"""A scheduler's rounds: how many runs it has in hand, and what ends them. Redis is not asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from fedsvc.domain.schedule import Recurrence, Schedule, Task
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.schedules import Schedules
from fedsvc.worker.scheduler import Scheduler


class Noted:
    """Schedules that are all due, and whose runs anybody may have."""

    def __init__(self, count: int) -> None:
        self.left = [
            Schedule(f"s{n}", Recurrence(interval_ms=1000), task=Task.CLEANUP, next_run_ms=1000)
            for n in range(count)
        ]
        #: how often Redis is away yet
        self.away = 0

    async def due(self, _now_ms: int) -> AsyncIterator[Schedule]:
        if self.away:
            self.away -= 1
            raise QueueUnavailable("away")
        for schedule in list(self.left):
            yield schedule

    async def begin(self, *_: Any) -> bool:
        return True

    async def keep(self, *_: Any) -> bool:
        return False

    async def end(self, schedule: Schedule, *_: Any) -> bool:
        self.left.remove(schedule)
        return True


class Hands:
    """Carry runs out until they are let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.release = asyncio.Event()
        self.any = asyncio.Event()

    async def carry_out(self, schedule: Schedule, _time_ms: int) -> None:
        self.begun.append(schedule.id)
        self.any.set()
        try:
            await self.release.wait()
        finally:
            self.ended.append(schedule.id)


def scheduler(noted: Noted, hands: Hands) -> Scheduler:
    return Scheduler(cast(Schedules, noted), hands.carry_out, lambda: 1000, "x")


async def test_it_has_so_many_runs_in_hand_and_begins_others_when_they_are_done() -> None:
    noted, hands = Noted(Scheduler.AT_ONCE + 2), Hands()
    worker = scheduler(noted, hands)
    for _ in range(2):
        await worker.look()
        await asyncio.sleep(0)
    assert hands.begun == [f"s{n}" for n in range(Scheduler.AT_ONCE)]
    hands.release.set()
    await worker.finished()
    await worker.look()
    await worker.finished()
    assert len(hands.begun) == len(hands.ended) == Scheduler.AT_ONCE + 2
    assert noted.left == []


async def test_redis_being_away_ends_no_rounds_and_their_end_ends_what_is_in_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Scheduler, "EVERY", 0.0)
    noted, hands = Noted(1), Hands()
    noted.away = 2
    rounds = asyncio.create_task(scheduler(noted, hands).run())
    async with asyncio.timeout(10):
        await hands.any.wait()
    rounds.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rounds
    assert hands.ended == ["s0"]
    assert noted.left, "whoever finds it takes it up"


async def test_a_run_that_is_somebody_else_s_by_now_ends_at_once_and_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Scheduler, "KEEP_EVERY", 0.0)
    noted, hands = Noted(1), Hands()
    worker = scheduler(noted, hands)
    await worker.look()
    async with asyncio.timeout(10):
        await hands.any.wait()
        await worker.finished()
    assert hands.ended == ["s0"]
    assert noted.left, "its end is told by whoever has it"
