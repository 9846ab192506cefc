"""What takes up memory is found out by samples: about right, and at the same cost however much there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from servers.hosts import put, some_hosts
from servers.queue import HOUR_MS, PARTITIONS, Queue, open_queue
from servers.valkey import ValkeyServer, valkey_server

from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.domain.relations import Relation
from fedsvc.queue.memory_usage import MemoryUsage

INBOXES = 40


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server without anybody else's keys."""
    with valkey_server(tmp_path) as server:
        yield server


@pytest.fixture
async def queue(own: ValkeyServer) -> AsyncIterator[Queue]:
    async with open_queue(own.url, "fedsvc") as opened:
        yield opened


def usage_of(queue: Queue) -> MemoryUsage:
    return MemoryUsage(queue.link, queue.keys, queue.settings)


async def filled(queue: Queue, activities: int) -> None:
    """Activities to as many inboxes each, some of everything else."""
    for number in range(activities):
        await queue.fan_out(f"n{number}", range(INBOXES))
    await queue.fan_out("later", range(INBOXES), not_before_ms=await queue.now_ms() + HOUR_MS)
    taken = await queue.admit_everywhere(20)
    for number, admitted in enumerate(taken[:9]):
        state = (DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.RETRY)[number % 3]
        await queue.settle(admitted, state, Reason.UNAVAILABLE, wait_ms=HOUR_MS)
    await put(queue, some_hosts(2000))


async def weights(queue: Queue) -> dict[str, int]:
    """Of every key of a partition, by the part of its name that says of which kind it is."""
    found: Counter[str] = Counter()
    for name in await queue.link.call("KEYS", "fedsvc:{*"):
        weight = await queue.link.call("MEMORY", "USAGE", name, "SAMPLES", 0)
        found[name.decode().split(":")[2]] += weight
    return found


async def test_each_category_is_about_right(queue: Queue) -> None:
    await filled(queue, 300)
    found = {category.name: category for category in await usage_of(queue).read()}
    really = await weights(queue)
    for name, parts in {
        "deliveries": ("deliveries",),
        "ready": ("ready", "woken", "line"),
        "retry": ("retry", "expiry"),
        "dead": ("dead",),
        "outcomes": ("outcomes",),
        "hosts": ("hosts", "recent", "wake", "policies", "pauses"),
        "messages": ("message",),
        "recipients": ("activity",),
    }.items():
        size = sum(really[part] for part in parts)
        assert size / 2 < found[name].bytes < size * 2, (name, size, found[name])
    assert found["deliveries"].entries == 301 * INBOXES
    assert (found["dead"].entries, found["outcomes"].entries) == (3, 6)
    assert found["retry"].entries == INBOXES + 3
    assert found["ready"].entries == 300 * INBOXES - 9
    messages = len(await queue.keys_of("message"))
    assert messages / 2 < found["messages"].entries < messages * 2
    sizes = [category.bytes for category in found.values()]
    assert sizes == sorted(sizes, reverse=True)


async def test_indexes_of_a_large_fan_out_take_little_more_than_they_hold(queue: Queue) -> None:
    inboxes = range(PARTITIONS * 2500)  # more than one script takes
    accepted = await queue.fan_out("1", inboxes, relation=Relation("k"))
    assert (accepted.accepted, accepted.duplicates) == (len(inboxes), 0)
    for kind in ("activity", "group"):
        names = await queue.keys_of(kind)
        assert len(names) >= PARTITIONS
        for name in names:
            holds, takes = [
                await queue.link.call(*command, name) for command in (("STRLEN",), ("MEMORY", "USAGE"))
            ]
            assert 8 * 2000 < holds < takes < 1.2 * holds
    again = await queue.fan_out("1", inboxes, relation=Relation("k"))
    assert (again.accepted, again.duplicates) == (0, len(inboxes))


async def test_it_costs_the_same_however_much_there_is(queue: Queue) -> None:
    async def cost() -> int:
        await usage_of(queue).read()
        total = 0
        for line in (await queue.link.call("INFO", "commandstats")).decode().splitlines():
            if line.startswith(("cmdstat_memory|usage", "cmdstat_scan", "cmdstat_dbsize")):
                total += int(line.split("calls=")[1].split(",")[0])
        await queue.link.call("CONFIG", "RESETSTAT")
        return total

    await filled(queue, 30)
    assert 0 < await cost() < 1000
    await filled(queue, 600)
    assert 0 < await cost() < 1000


async def test_it_is_read_again_only_after_a_while(queue: Queue) -> None:
    usage = usage_of(queue)
    first = await usage.read()
    await queue.enqueue("1")
    assert await usage.read() is first
    deliveries = next(c for c in await usage_of(queue).read() if c.name == "deliveries")
    assert deliveries.entries == 1


async def test_what_is_of_others_is_not_counted(queue: Queue) -> None:
    for number in range(300):
        await queue.link.call("SET", f"cache:{{p1}}:message:{number}", b"x" * 5000)
        await queue.link.call("SET", f"fedsvc-2:{{p1}}:message:{number}", b"x" * 5000)
    assert "messages" not in {category.name for category in await usage_of(queue).read()}
