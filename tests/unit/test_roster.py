"""Who hears of whom, and what a worker does upon it. Neither Redis nor a processor is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedsvc.errors import QueueUnavailable
from fedsvc.queue.bell import Announced, Bell, Rung
from fedsvc.queue.consumer import Consumer
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.metrics import PARTITIONS, WORKERS
from fedsvc.worker.processor import Processor
from fedsvc.worker.roster import Roster


class Desk:
    """A roster of worker `a`; what it is told and what it asks for stand in lists."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.affinity = Affinity("a", 16, lambda: self.now)
        self.alive: set[str] = {"a", "b"}
        self.announced: list[tuple[str, bool]] = []
        self.pokes: list[tuple[frozenset[int], dict[str, Any]]] = []
        self.helped: list[list[int]] = []
        self.promoted: list[int] = []
        self.waited_ms = 0
        self.idle = True
        self.elsewhere = asyncio.Event()
        #: what is told by each connection of the bell, until it is lost
        self.told: list[list[Rung | Announced]] = []
        self.calls = 0
        self.roster = Roster(
            cast(Bell, SimpleNamespace(announce=self._announce, listen=self._listen)),
            cast(Consumer, SimpleNamespace(name="a", alive=self._alive, promote=self._promote)),
            self.affinity,
            cast(Processor, self),
        )

    async def _announce(self, name: str, *, arrives: bool) -> None:
        self.announced.append((name, arrives))

    async def _listen(self) -> AsyncGenerator[Rung | Announced, None]:
        if not self.told:
            await asyncio.get_running_loop().create_future()
        for each in self.told.pop(0):
            yield each
        raise QueueUnavailable("lost")

    async def _alive(self) -> set[str]:
        self.calls += 1
        if self.calls == 1:
            raise QueueUnavailable("away")
        return self.alive

    async def _promote(self, partition: int, *, look: bool) -> Any:
        assert look
        self.promoted.append(partition)
        return SimpleNamespace(waited_ms=self.waited_ms)

    def poke(self, partitions: Iterable[int], **how: Any) -> None:
        self.pokes.append((frozenset(partitions), how))

    def help_out(self, partitions: list[int]) -> None:
        self.helped.append(partitions)


async def running(coroutine: Any, until: Any) -> None:
    task = asyncio.create_task(coroutine)
    async with asyncio.timeout(10):
        while not until():
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_says_once_that_it_has_come_when_redis_knows_it_and_that_it_goes() -> None:
    desk = Desk()
    desk.alive = {"b"}
    desk.calls = 1
    await desk.roster._call_the_roll()
    assert (desk.announced, desk.affinity.alone) == ([], True), "Redis does not know us: all is ours"
    desk.alive = {"a", "b"}
    for _ in range(2):
        await desk.roster._call_the_roll()
    assert desk.announced == [("a", True)]
    assert not desk.affinity.alone
    assert (PARTITIONS._value.get(), WORKERS._value.get()) == (len(desk.affinity.own), 2)
    await desk.roster.leave()
    assert desk.announced == [("a", True), ("a", False)]


async def test_the_roll_is_called_again_after_redis_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Roster, "EVERY", 0.02)
    desk = Desk()
    await running(desk.roster.run(), lambda: not desk.affinity.alone)
    assert desk.calls == 2
    before = desk.calls
    desk.elsewhere.set()  # something was heard of another's partition
    monkeypatch.setattr(Roster, "EVERY", 1000.0)
    await running(desk.roster.run(), lambda: len(desk.helped) >= 3 and not desk.elsewhere.is_set())
    assert desk.calls == before + 1, "looks go on between two calls of the roll"


async def test_what_comes_to_us_when_another_goes_is_looked_at_at_once() -> None:
    desk = Desk()
    desk.affinity.see({"a", "b"})
    ours = desk.affinity.own
    desk.told = [[Announced("b", False), Announced("c", True)], [Rung(3, True), Rung(5, False)]]
    await running(desk.roster.listen(), lambda: len(desk.pokes) == 4)
    assert desk.affinity.workers == {"a", "c"}
    assert desk.pokes[0] == (desk.affinity.all - ours, {})
    assert desk.pokes[1] == (frozenset(), {}), "what c has now is no more ours"
    assert desk.pokes[2:] == [
        (frozenset({3}), {"first": True, "urgent": True}),
        (frozenset({5}), {"first": True, "urgent": False}),
    ]


async def test_of_others_partitions_those_that_are_behind_are_helped_out_with_if_we_are_idle() -> None:
    desk = Desk()
    desk.affinity.see({"a", "b"})
    theirs = min(desk.affinity.all - desk.affinity.own)
    desk.affinity.heard(theirs)
    desk.affinity.heard(theirs, urgent=True)
    await desk.roster._look()
    assert (desk.helped, desk.promoted, desk.pokes) == ([[]], [], [])
    desk.now += Affinity.PATIENCE
    desk.waited_ms = 300
    await desk.roster._look()
    assert (desk.helped, desk.promoted) == ([[], [theirs]], [theirs])
    assert desk.pokes == [(frozenset({theirs}), {})]
    desk.affinity.heard(theirs)
    desk.now += Affinity.PATIENCE
    desk.idle = False
    await desk.roster._look()
    assert desk.promoted == [theirs], "the next round is soon enough"
