"""How much of one origin may be pending, on a clock of the test's and a queue that tells what a test says."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedsvc.config import Settings
from fedsvc.errors import CallerBacklogFull, InvalidInput, OriginBacklogFull, QueueUnavailable
from fedsvc.queue.stats import QueueStats, StatsReader
from fedsvc.server import quota as module
from fedsvc.server.caller import Caller
from fedsvc.server.limits import Limits
from fedsvc.server.quota import Quota

A, B = "a.example", "b.example"


class Figures:
    """Stands for Redis, and for the time."""

    def __init__(self) -> None:
        self.pending = {A: 0, B: 0}
        self.now = 1000.0
        self.asked = 0
        #: to be set before Redis answers
        self.answers = asyncio.Event()
        self.answers.set()

    async def read(self) -> QueueStats:
        self.asked += 1
        return cast("QueueStats", SimpleNamespace(pending=sum(self.pending.values())))

    async def pending_of(self, origin: str) -> int:
        self.asked += 1
        told = self.pending[origin]
        await self.answers.wait()
        return told


@pytest.fixture
def figures() -> Figures:
    return Figures()


@pytest.fixture
def quota(figures: Figures) -> Quota:
    return quota_of(figures, FEDSVC_ORIGIN_BACKLOG="10")


def quota_of(figures: Figures, **settings: str) -> Quota:
    limits = Limits(Settings.from_environment(settings))
    return Quota(limits, cast("StatsReader", figures), lambda: figures.now)


async def accept(quota: Quota, origin: str, n: int, taken: int | None = None) -> None:
    async with quota.room(origin, n) as room:
        room.taken = n if taken is None else taken


async def refused(quota: Quota, origin: str, n: int) -> None:
    with pytest.raises(OriginBacklogFull) as error:
        await accept(quota, origin, n)
    assert error.value.retry_after_s > 0


async def test_an_origin_gets_no_further_than_its_limit_and_hinders_no_other(
    quota: Quota, figures: Figures
) -> None:
    await accept(quota, A, 7)
    await refused(quota, A, 4)
    await accept(quota, A, 3)
    await refused(quota, A, 1)
    await accept(quota, B, 10)
    assert figures.asked == 2, "once for each"


async def test_what_ended_makes_room_within_a_second(quota: Quota, figures: Figures) -> None:
    await accept(quota, A, 10)
    figures.now += 0.9
    await refused(quota, A, 1)
    figures.pending[A] = 4
    figures.now += 0.1
    await accept(quota, A, 6)
    await refused(quota, A, 1)


async def test_what_other_processes_accept_counts_within_a_second(quota: Quota, figures: Figures) -> None:
    await accept(quota, A, 1)
    figures.pending[A] = 10
    figures.now += 1
    await refused(quota, A, 1)


async def test_calls_that_are_under_way_count(quota: Quota) -> None:
    async with quota.room(A, 6) as first:
        await refused(quota, A, 5)
        await accept(quota, A, 4)
        first.taken = 2  # the others were duplicates
    await accept(quota, A, 4)
    await refused(quota, A, 1)


async def test_of_what_may_have_been_accepted_all_counts(quota: Quota) -> None:
    with pytest.raises(QueueUnavailable):
        async with quota.room(A, 8):
            raise QueueUnavailable("no answer")
    await refused(quota, A, 3)
    with pytest.raises(InvalidInput):
        async with quota.room(A, 2):
            raise InvalidInput("inbox", "is bad")
    await accept(quota, A, 2)


async def test_what_ends_while_redis_is_asked_is_not_forgotten(quota: Quota, figures: Figures) -> None:
    async with quota.room(A, 5) as first:
        figures.now += 1
        figures.answers.clear()
        second = asyncio.create_task(accept(quota, A, 5))
        while figures.asked < 2:
            await asyncio.sleep(0)
        first.taken = 5
    figures.answers.set()  # it was read before
    await second
    await refused(quota, A, 1)


async def test_a_call_that_could_never_be_accepted_is_no_matter_of_time(quota: Quota) -> None:
    with pytest.raises(InvalidInput):
        await accept(quota, A, 11)


async def test_without_a_limit_nobody_is_asked(figures: Figures) -> None:
    quota = quota_of(figures)
    await accept(quota, A, 1_000_000)
    assert figures.asked == 0


async def test_no_more_origins_are_remembered_than_allowed(
    quota: Quota, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST", 3)
    async with quota.room(A, 10) as held:
        for number in range(20):
            figures.pending[f"{number}.example"] = 0
            await accept(quota, f"{number}.example", 1)
        remembered: dict[tuple[str, bool], Any] = quota._held
        assert len(remembered) == 3
        assert (A, False) in remembered, "it has a call under way"
        held.taken = 10
    await refused(quota, A, 1)


BOTH = Caller("both", origins=frozenset({A, B}))
ALL = Caller("all")


@pytest.mark.parametrize("known", [BOTH, ALL])
async def test_a_caller_gets_no_further_than_its_limit_with_all_its_origins_together(
    figures: Figures, known: Caller
) -> None:
    quota = quota_of(figures, FEDSVC_CALLER_BACKLOG="10")
    figures.pending |= {A: 2, B: 3}
    async with quota.room(A, 3, known) as room:
        room.taken = 3
    with pytest.raises(CallerBacklogFull, match=f"{known.name} has 8 deliveries pending; 10 may be"):
        async with quota.room(B, 3, known):
            pass
    async with quota.room(B, 2, known) as room:
        room.taken = 2
    async with quota.room(A, 5, Caller("other", origins=frozenset({A}))):
        pass
    with pytest.raises(InvalidInput, match="deliveries of a caller may wait"):
        async with quota.room(A, 11, known):
            pass


async def test_what_others_have_pending_is_not_held_against_a_caller(figures: Figures) -> None:
    quota = quota_of(figures, FEDSVC_CALLER_BACKLOG="10")
    figures.pending |= {A: 2, B: 100}
    async with quota.room(A, 8, Caller("one", origins=frozenset({A}))):
        pass


async def test_what_the_caller_may_not_have_is_not_held_against_the_origin(figures: Figures) -> None:
    quota = quota_of(figures, FEDSVC_ORIGIN_BACKLOG="10", FEDSVC_LIMITS="both:backlog=1 @b.example:backlog=0")
    for _ in range(3):
        with pytest.raises(InvalidInput):
            async with quota.room(A, 9, BOTH):
                pass
    async with quota.room(A, 10, ALL), quota.room(B, 1000, ALL):
        pass
