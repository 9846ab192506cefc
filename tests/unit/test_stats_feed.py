"""Figures are read once for all who watch."""

from __future__ import annotations

import asyncio

import pytest

from fedsvc.errors import Overloaded, QueueUnavailable, Stopping
from fedsvc.server.places import Places
from fedsvc.server.stats_feed import StatsFeed


class Reads:
    """Stands for reading figures, which takes a turn of the loop. They are the number of the reading."""

    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.count += 1
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        return self.count


def feed(reads: Reads, stopping: asyncio.Event | None = None, most: int = 100) -> StatsFeed[int]:
    return StatsFeed(Places(most, "watchers"), reads, stopping or asyncio.Event())


async def test_all_who_watch_share_each_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    reads = Reads()
    watched = feed(reads)
    watchers = [watched.watch(1000) for _ in range(50)]
    assert {*await asyncio.gather(*(anext(w) for w in watchers))} == {1}
    now += 1.0
    assert {*await asyncio.gather(*(anext(w) for w in watchers))} == {2}
    assert reads.count == 2
    for watcher in watchers:
        await watcher.aclose()


async def test_so_many_may_watch_and_no_more_until_one_leaves() -> None:
    watched = feed(Reads(), most=2)
    first, second = watched.watch(1000), watched.watch(1000)
    await asyncio.gather(anext(first), anext(second))
    with pytest.raises(Overloaded, match="2 watchers already"):
        await anext(watched.watch(1000))
    await first.aclose()
    third = watched.watch(1000)
    await anext(third)
    for watcher in (second, third):
        await watcher.aclose()


async def test_watching_ends_when_the_process_stops_not_an_interval_later() -> None:
    stopping = asyncio.Event()
    watcher = feed(Reads(), stopping).watch(3_600_000)
    await anext(watcher)
    waiting = asyncio.ensure_future(anext(watcher))
    await asyncio.sleep(0)  # it waits for its interval
    stopping.set()
    async with asyncio.timeout(10):
        with pytest.raises(Stopping):
            await waiting


async def test_who_watches_is_told_when_figures_cannot_be_read_and_counts_no_more() -> None:
    reads = Reads()
    watched = feed(reads, most=1)
    reads.error = QueueUnavailable("away")
    with pytest.raises(QueueUnavailable):
        await anext(watched.watch(1000))
    reads.error = None
    watcher = watched.watch(1000)
    assert await anext(watcher) == 2
    await watcher.aclose()
