"""Hosts in every order, page by page, while they change: on a real server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from servers.hosts import GONE, PAUSED, MadeHost, put, remove, some_hosts
from servers.queue import PARTITIONS, Queue

from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.domain.inbox import partition_of
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.consumer import Signal
from fedsvc.queue.host_list import HostList, HostOrder, Position
from fedsvc.queue.hosts import Circuit, HostPolicy, HostState

MANY = 10_000
HOST = "h0.example"
MINUTE_MS = 60_000


@pytest.fixture
def hosts(queue: Queue) -> HostList:
    return HostList(queue.link, queue.keys, queue.settings)


def value(host: HostState, order: HostOrder) -> float:
    match order:
        case HostOrder.BACKLOG:
            return host.parked
        case HostOrder.FAILURES:
            return host.failures
        case HostOrder.LATENCY:
            return host.latency_ms
        case HostOrder.NAME:
            return 0


async def pages(
    hosts: HostList, order: HostOrder, size: int, **filters: Any
) -> AsyncIterator[list[HostState]]:
    """All of them, each of a snapshot of its own."""
    after: Position | None = None
    while True:
        hosts.forget()
        page = (await hosts.snapshot()).page(order, after=after, limit=size, **filters)
        yield page.hosts
        after = page.last
        if after is None:
            return


@pytest.mark.parametrize("order", HostOrder)
async def test_ten_thousand_hosts_are_listed_once_each_in_order(
    queue: Queue, hosts: HostList, order: HostOrder
) -> None:
    await put(queue, some_hosts(MANY))
    listed = [host async for page in pages(hosts, order, 999) for host in page]
    assert listed == sorted(listed, key=lambda host: (-value(host, order), host.host))
    assert {host.host for host in listed} == {host.name for host in some_hosts(MANY)}
    assert len(listed) == MANY


async def test_what_is_no_host_hides_none_and_ends_nobody_who_looks(queue: Queue, hosts: HostList) -> None:
    await put(queue, some_hosts(5))
    prefix = queue.keys.partition(0).prefix
    await queue.link.call("HSET", f"{prefix}:hosts", "short.example", b"garbage")
    await queue.link.call("HSET", f"{prefix}:hosts", "long.example", bytes(500))
    await queue.link.call("HSET", f"{prefix}:spills", 7, b"of nobody")
    listed = [host async for page in pages(hosts, HostOrder.BACKLOG, 2) for host in page]
    assert {host.host for host in listed} == {host.name for host in some_hosts(5)}
    strange = next(n for n in map("h{}.example".format, range(100)) if partition_of(n, PARTITIONS) == 0)
    await queue.link.call("HSET", f"{prefix}:hosts", strange, b"garbage")
    assert not (await queue.hosts.get(strange)).known


@pytest.mark.parametrize("order", HostOrder)
async def test_who_stays_where_it_is_is_listed_once_while_others_come_go_and_move(
    queue: Queue, hosts: HostList, order: HostOrder
) -> None:
    made = some_hosts(MANY)
    await put(queue, made)
    moving, leaving = made[::10], made[5::10]
    still = {host.name for host in made} - {host.name for host in moving + leaving}
    seen: Counter[str] = Counter()
    turn = 0
    async for page in pages(hosts, order, 500):
        seen.update(host.host for host in page)
        turn += 1
        part = slice((turn - 1) * 40, turn * 40)
        changed = [
            host._replace(backlog=turn * 50, failures=turn, latency_ms=turn * 50.5) for host in moving[part]
        ]
        await put(queue, [*changed, *some_hosts(40, MANY + turn * 40)])
        await remove(queue, [host.name for host in leaving[part]])
    assert turn >= MANY // 500
    assert {name: seen[name] for name in still if seen[name] != 1} == {}
    if order is HostOrder.NAME:  # where nobody moves
        assert {host.name: seen[host.name] for host in moving if seen[host.name] != 1} == {}


async def test_hosts_are_read_in_small_steps_and_once_for_all_who_ask_at_the_same_time(
    queue: Queue, hosts: HostList
) -> None:
    async def scans() -> int:
        info = (await queue.link.call("INFO", "commandstats")).decode()
        return int(info.partition("cmdstat_hscan:calls=")[2].partition(",")[0] or 0)

    await put(queue, some_hosts(MANY))
    before = await scans()
    found = await asyncio.gather(*(hosts.snapshot() for _ in range(50)))
    assert {id(snapshot) for snapshot in found} == {id(found[0])}
    assert len(found[0]) == MANY
    steps = await scans() - before
    assert PARTITIONS < steps <= 2 * MANY // HostList.CHUNK + PARTITIONS
    await hosts.snapshot()
    assert await scans() - before == steps, "it is still fresh"
    hosts.forget()
    await hosts.snapshot()
    assert await scans() - before > steps


async def test_who_gives_up_waiting_takes_nobodys_answer_away(queue: Queue, hosts: HostList) -> None:
    await put(queue, some_hosts(10))
    first, second = (asyncio.create_task(hosts.snapshot()) for _ in range(2))
    await asyncio.sleep(0)  # both wait
    first.cancel()
    assert len(await second) == 10


async def test_a_list_that_was_begun_before_a_change_is_not_shown_after_it(
    queue: Queue, hosts: HostList
) -> None:
    begun = asyncio.create_task(hosts.snapshot())
    await asyncio.sleep(0)
    await put(queue, some_hosts(3))
    hosts.forget()
    assert len(await hosts.snapshot()) == 3
    await begun
    assert len(await hosts.snapshot()) == 3


async def test_without_redis_everybody_is_told(queue: Queue, hosts: HostList) -> None:
    await queue.link.close()
    answers = await asyncio.gather(*(hosts.snapshot() for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [QueueUnavailable] * 3


async def test_states_are_those_that_one_host_would_show(queue: Queue, hosts: HostList) -> None:
    now_ms = await queue.now_ms()
    later, before = now_ms + MINUTE_MS, now_ms - MINUTE_MS
    expected = {
        MadeHost("closed.example"): Circuit.CLOSED,
        MadeHost("open.example", circuit=1): Circuit.OPEN,
        MadeHost("half.example", circuit=2): Circuit.HALF_OPEN,
        MadeHost("paused.example", flags=PAUSED, pause_ms=later): Circuit.PAUSED,
        MadeHost("paused-open.example", circuit=1, flags=PAUSED, pause_ms=later): Circuit.PAUSED,
        MadeHost("pause-over.example", flags=PAUSED, pause_ms=before): Circuit.CLOSED,
        MadeHost("asked-to-wait.example", pause_ms=later): Circuit.CLOSED,
        MadeHost("gone.example", circuit=1, flags=GONE): Circuit.GONE,
    }
    await put(queue, expected)
    listed = [host async for page in pages(hosts, HostOrder.NAME, 3) for host in page]
    assert {host.host: host.circuit for host in listed} == {m.name: state for m, state in expected.items()}
    assert listed == [await queue.hosts.get(host.host) for host in listed]


async def test_filters_go_together_and_fill_whole_pages(queue: Queue, hosts: HostList) -> None:
    made = some_hosts(1000)
    await put(queue, made)
    states = frozenset({Circuit.OPEN, Circuit.HALF_OPEN})
    expected = sorted(host.name for host in made if host.circuit and "-003" in host.name)
    found = [page async for page in pages(hosts, HostOrder.NAME, 30, states=states, name_contains="-003")]
    assert [len(page) for page in found] == [30, 30, 6]
    assert [host.host for page in found for host in page] == expected
    assert [page async for page in pages(hosts, HostOrder.NAME, 30, name_contains="nowhere")] == [[]]


async def test_pauses_and_policies_are_shown_with_their_hosts(queue: Queue, hosts: HostList) -> None:
    await queue.hosts.pause(HOST, duration_ms=MINUTE_MS, reason="they asked")
    await queue.hosts.set_policy("h1.example", HostPolicy(2, 0.5, 3))
    (paused, limited) = [host async for page in pages(hosts, HostOrder.NAME, 10) for host in page]
    assert (paused.host, paused.circuit, paused.pause_reason) == (HOST, Circuit.PAUSED, "they asked")
    assert paused.paused_until_ms == pytest.approx(await queue.now_ms() + MINUTE_MS, abs=5000)
    assert (limited.host, limited.policy) == ("h1.example", HostPolicy(2, 0.5, 3))
    await queue.pass_time(2 * MINUTE_MS)
    (rested, _) = [host async for page in pages(hosts, HostOrder.NAME, 10) for host in page]
    assert (rested.circuit, rested.pause_reason, rested.paused_until_ms) == (Circuit.CLOSED, "", 0)


async def fail(queue: Queue, number: int, state: DeliveryState = DeliveryState.RETRY) -> int:
    """A delivery to host 0 fails with a reason of its own. Returns its sequence."""
    await queue.enqueue(f"f{number}", path=f"/{number}")
    (admitted,) = await queue.admit(1)
    await queue.settle(
        admitted, state, Reason(4 + number % 20), wait_ms=100 * MINUTE_MS, signal=Signal.ANSWERED
    )
    return admitted.id.sequence


async def test_a_host_remembers_the_attempts_that_failed_last(queue: Queue) -> None:
    failed = [await fail(queue, n, (DeliveryState.RETRY, DeliveryState.DEAD)[n % 2]) for n in range(20)]
    for number in range(3):
        await queue.enqueue(f"good{number}", path=f"/good{number}")
    for admitted in await queue.admit(3):
        await queue.deliver(admitted)
    told = await queue.hosts.failures(HOST)
    assert [t.id.sequence for t in told] == failed[:3:-1]
    assert [t.attempt.reason for t in told] == [Reason(4 + n % 20) for n in range(19, 3, -1)]
    assert [t.attempt.status for t in told] == [200] * 16
    now_ms = await queue.now_ms()
    assert all(now_ms - MINUTE_MS < t.attempt.time_ms <= now_ms for t in told)
    assert await queue.hosts.failures("h1.example") == []


async def test_failures_that_are_settled_together_are_told_newest_first(queue: Queue) -> None:
    for number in range(3):
        await queue.enqueue(f"f{number}", path=f"/{number}")
    taken = await queue.admit(3)
    for admitted in taken:
        await queue.fail(admitted)
    assert [t.id for t in await queue.hosts.failures(HOST)] == [admitted.id for admitted in reversed(taken)]


async def test_failures_are_forgotten_with_their_host(queue: Queue) -> None:
    await fail(queue, 1, DeliveryState.DEAD)
    await queue.pass_time(31 * 24 * 60 * MINUTE_MS)
    assert (await queue.hosts.audit(queue.partition_of(0))).forgotten == 1
    assert await queue.hosts.failures(HOST) == []


async def test_a_count_of_what_waits_for_hosts_that_are_down_is_set_right(queue: Queue) -> None:
    prefix = queue.keys.partition(queue.partition_of(0)).prefix
    await put(queue, [MadeHost(HOST, circuit=1, backlog=7)])
    await queue.link.call("HSET", f"{prefix}:counters", "shut", 5)
    await queue.hosts.audit(queue.partition_of(0))
    assert (await queue.stats.read()).counter("shut") == 7
    await remove(queue, [HOST])
    await queue.hosts.audit(queue.partition_of(0))
    assert (await queue.stats.read()).counter("shut") == 0
