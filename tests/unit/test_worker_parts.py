"""Shares of slots, heartbeats of loops, and caches that fetch once."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain.keys import registered_name
from fedsvc.worker.beats import Beats
from fedsvc.worker.caches import KeyCache, SharedFetch
from fedsvc.worker.places import Places
from fedsvc.worker.shares import WEIGHTS, ShareKeeper


@given(st.lists(st.integers(1, 200), min_size=1, max_size=100))
def test_shares_sum_up_to_the_slots_and_none_is_negative(limits: list[int]) -> None:
    keeper = ShareKeeper()
    for limit in limits:
        shares = keeper.of(limit)
        assert shares.limit == limit
        assert shares.urgent + shares.normal + shares.bulk == limit
        assert min(shares) >= 0


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10, 128])
def test_over_time_each_priority_gets_what_it_is_due(limit: int) -> None:
    keeper, got = ShareKeeper(), Counter[str]()
    for _ in range(1000):
        got.update(keeper.of(limit)._asdict())
    for name, weight in zip(("urgent", "normal", "bulk"), WEIGHTS, strict=True):
        assert got[name] == pytest.approx(1000 * limit * weight / sum(WEIGHTS), abs=3)


def test_a_loop_that_does_not_beat_or_says_that_it_failed_is_a_problem() -> None:
    now = 0.0
    beats = Beats("take", "settle", monotonic=lambda: now)
    assert beats.problems == {"take": "not started", "settle": "not started"}
    beats.beat("take")
    beats.fail("settle", "Redis is away")
    assert beats.problems == {"settle": "Redis is away"}
    beats.beat("settle")
    assert not beats.problems
    now = Beats.PATIENCE + 1
    assert set(beats.problems) == {"take", "settle"}


def test_a_loop_that_fails_all_the_time_is_not_stuck_and_one_that_does_not_come_round_is() -> None:
    now = 0.0
    beats = Beats("take", "settle", monotonic=lambda: now)
    beats.beat("take")
    now = Beats.STUCK - 1
    beats.fail("settle", "Redis is away")
    assert beats.stuck == []
    now = Beats.STUCK + 1
    assert beats.stuck == ["take"]


async def test_what_many_ask_for_at_once_is_fetched_once() -> None:
    fetched: list[str] = []
    gate = asyncio.Event()

    async def fetch(key: str) -> str:
        fetched.append(key)
        await gate.wait()
        return key.upper()

    cache = SharedFetch(fetch, lambda _: 1, 10)
    waiting = [asyncio.ensure_future(cache.get("a")) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # takes nothing from the others
    gate.set()
    assert await asyncio.gather(*waiting[1:]) == ["A"] * 4
    assert await cache.get("a") == "A"
    assert fetched == ["a"]


async def test_a_failure_is_told_to_all_and_not_kept() -> None:
    tries = 0

    async def fetch(key: str) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ConnectionError
        return key

    cache = SharedFetch(fetch, lambda _: 1, 10)
    with pytest.raises(ConnectionError):
        await cache.get("a")
    assert await cache.get("a") == "a"


async def test_a_cache_stays_within_its_weight_and_forgets_the_least_used() -> None:
    fetched: list[int] = []

    async def fetch(key: int) -> int:
        fetched.append(key)
        return key

    cache = SharedFetch(fetch, lambda _: 1, 3)
    for key in (1, 2, 3, 1, 4, 1, 2):
        await cache.get(key)
    assert len(cache) == 3
    assert fetched == [1, 2, 3, 4, 2]


async def test_nothing_is_kept_of_what_was_not_there() -> None:
    fetched: list[int] = []

    async def fetch(key: int) -> int | None:
        fetched.append(key)
        return None

    cache = SharedFetch(fetch, lambda _: 1, 3)
    assert await cache.get(1) is None
    assert await cache.get(1) is None
    assert fetched == [1, 1]


async def test_a_registered_key_is_looked_up_again_after_a_while_and_one_of_a_call_never() -> None:
    fetched: Counter[str] = Counter()

    class Store:
        async def fetch(self, name: str) -> object:
            fetched[name] += 1
            return object()

    now = 1000.0
    cache = KeyCache(Store(), 10, lambda: now)  # type: ignore[arg-type]
    kept, called = registered_name("https://me.example/u/ada#main-key"), "0" * 32
    for _ in range(100):
        await cache.get(kept)
        await cache.get(called)
    assert fetched == {kept: 1, called: 1}
    first = await cache.get(kept)
    now += KeyCache.FRESH
    assert await cache.get(kept) is not first
    await cache.get(called)
    assert fetched == {kept: 2, called: 1}
    for _ in range(100):
        now += KeyCache.FRESH
        await cache.get(kept)
    assert len(cache._registered) == 10


def test_what_waits_for_its_inbox_takes_up_no_place_but_is_bounded_all_the_same() -> None:
    now = 0.0
    places = Places(8, lambda: now)
    for number in range(Places.MAX_SLOW * 8):
        if not number % 8:
            now += Places.SLOW + 0.1
        assert places.free > 0, number
        places.take((0, number))
        places.sent((0, number))
    now += Places.SLOW + 0.1
    assert places.free == 0, "four times as many as there are places"
    places.leave((0, 0))
    assert places.free == 1


def test_no_more_is_taken_than_can_be_sent_soon() -> None:
    places = Places(1000, lambda: 0.0)
    for number in range(Places.UNSENT):
        places.take((0, number))
    assert places.free == 0
    places.sent((0, 5))
    assert places.free == 1
