"""The queue while Redis is full, read-only or emptied, and among entries of others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from servers.queue import HOUR_MS, Queue, open_queue
from servers.valkey import valkey_server

from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.domain.relations import Relation
from fedsvc.errors import FedsvcError, QueueCorrupt, QueueUnavailable
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.server_info import record_partitions

DAY_MS = 24 * HOUR_MS


@pytest.fixture
async def alone(tmp_path: Path, namespace: str) -> AsyncIterator[Queue]:
    """On a server of its own, that may be hurt."""
    with valkey_server(tmp_path) as server:
        async with open_queue(server.url, namespace) as opened:
            yield opened


def prefix_of(queue: Queue) -> str:
    return queue.keys.partition(queue.partition_of(0)).prefix


# Redis itself


async def test_a_full_redis_takes_nothing_new_and_lets_everything_else_be_finished(alone: Queue) -> None:
    partition = alone.partition_of(0)
    await record_partitions(alone.link, alone.keys, alone.settings)
    for number in range(5):
        await alone.enqueue(str(number))
    await alone.enqueue("later", not_before_ms=await alone.now_ms() + HOUR_MS)
    await alone.pass_time(HOUR_MS + 1)
    held = await alone.admit(3)
    await alone.link.call("CONFIG", "SET", "maxmemory", 1)

    with pytest.raises(QueueUnavailable):
        await alone.enqueue("new")
    await record_partitions(alone.link, alone.keys, alone.settings)
    for admitted, state in zip(
        held, (DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.RETRY), strict=True
    ):
        assert (await alone.settle(admitted, state, wait_ms=DAY_MS)).passed_over == set()
    assert await alone.promote() == 1
    (other,) = await alone.admit(1, worker="b")
    assert await alone.consumer("b").leave(partition) == 1
    assert [a.id for a in await alone.reclaim("a")] == [other.id]
    assert await alone.outcomes.lead(partition, "a")
    _, last, count = await alone.outcomes.read(partition, 0, 10)
    await alone.outcomes.commit(partition, 0, last, count)
    await alone.link.call("CONFIG", "SET", "maxmemory", 0)
    await alone.pass_time(DAY_MS * 30)
    await alone.link.call("CONFIG", "SET", "maxmemory", 1)
    assert await alone.outcomes.trim(partition, 10) == 2
    await alone.is_whole(delivered=1, dead=1, retry=1, ready=2, in_flight=1)

    await alone.link.call("CONFIG", "SET", "maxmemory", 0)
    assert not (await alone.enqueue("new")).duplicate


async def test_a_redis_that_only_reads_is_unavailable_and_not_broken(alone: Queue) -> None:
    await alone.enqueue("1")
    await alone.enqueue("2")
    (held,) = await alone.admit(1)
    await alone.link.call("REPLICAOF", "127.0.0.1", 1)
    for attempt in (
        alone.enqueue("3"),
        alone.admit(1),
        alone.settle(held, DeliveryState.DELIVERED),
        alone.reclaim("b"),
        alone.outcomes.lead(0, "a"),
    ):
        with pytest.raises(QueueUnavailable, match="refuses"):
            await attempt
    await alone.link.call("REPLICAOF", "NO", "ONE")
    assert (await alone.settle(held, DeliveryState.DELIVERED)).passed_over == set()
    await alone.is_whole(delivered=1, ready=1)


async def test_a_user_who_may_not_is_told_as_redis_being_unavailable(alone: Queue) -> None:
    await alone.link.call("ACL", "SETUSER", "default", "-set")
    with pytest.raises(QueueUnavailable):
        await alone.link.call("SET", "x", "y")
    await alone.link.call("ACL", "SETUSER", "default", "+set")
    await alone.link.call("SET", "x", "y")


async def test_what_redis_finds_wrong_with_a_command_is_no_unavailability(queue: Queue) -> None:
    with pytest.raises(FedsvcError) as raised:
        await queue.link.call("HGET", "x")
    assert not isinstance(raised.value, QueueUnavailable)


async def test_a_flushall_between_admission_and_settlement_is_survived(alone: Queue) -> None:
    await alone.enqueue("1")
    (held,) = await alone.admit(1)
    await alone.link.call("FLUSHALL")
    await alone.link.call("SCRIPT", "FLUSH")
    partition = alone.partition_of(0)
    for state in (DeliveryState.DELIVERED, DeliveryState.RETRY, DeliveryState.DEAD):
        assert (await alone.settle(held, state)).passed_over == {0}
    assert await alone.consumer("a").recover(partition, 10) == []
    assert await alone.consumer("a").leave(partition) == 0
    assert (await alone.reader.get(held.id)) is None
    await alone.is_whole()
    # the stream is there again, its group is not
    queued = await alone.enqueue("1")
    assert not queued.duplicate
    assert queued.id > held.id
    assert (await alone.stats.read()).in_flight == 0
    assert (await alone.get(queued.id)).state is DeliveryState.READY
    assert await alone.reclaim("b") == []
    (again,) = await alone.admit(1)
    assert (await alone.settle(again, DeliveryState.DELIVERED)).passed_over == set()
    await alone.is_whole(delivered=1)


async def test_after_a_flushall_all_of_a_key_are_cancelled_as_before(alone: Queue) -> None:
    alone.producer.FRESH = 0.0  # type: ignore[misc]  # some time passes
    canceller = Canceller(alone.link, alone.keys, alone.settings)
    for _ in range(2):
        await alone.enqueue("1", relation=Relation("key"))
        assert await canceller.cancel_ordered("key") == (1, 0, 0)
        await alone.link.call("FLUSHALL")


async def test_ids_go_on_when_redis_s_clock_goes_back(queue: Queue) -> None:
    await queue.pass_time(DAY_MS)
    first = await queue.enqueue("1")
    await queue.pass_time(-2 * DAY_MS)
    second = await queue.enqueue("2")
    assert second.id > first.id
    assert [a.id for a in await queue.admit(5)] == [first.id, second.id]


@pytest.mark.parametrize("lost", ["all", "the last"])
async def test_what_redis_lost_before_the_archive_told_that_it_has_it_is_not_counted(
    alone: Queue, lost: str
) -> None:
    partition = alone.partition_of(0)
    before = {}
    for activity in ("1", "2"):
        await alone.enqueue(activity)
        (admitted,) = await alone.admit(1)
        if activity == "2":
            for kind in ("counters", "outcomes"):
                key = f"{prefix_of(alone)}:{kind}"
                before[key] = await alone.link.call("DUMP", key)
        await alone.settle(admitted, DeliveryState.DELIVERED)
    _, last, count = await alone.outcomes.read(partition, 0, 10)
    assert count == 2
    if lost == "all":
        await alone.link.call("FLUSHALL")
    else:
        for key, then in before.items():
            await alone.link.call("RESTORE", key, 0, then, "REPLACE")
    await alone.outcomes.commit(partition, 0, last, count)
    assert (await alone.stats.read()).archive_backlog == 0


# What others wrote


async def test_entries_of_others_behind_ours_block_nothing(queue: Queue) -> None:
    stream = f"{prefix_of(queue)}:ready:urgent"
    first = await queue.enqueue("1")
    for field in (("x", "y"), ("d", "nonsense")):
        await queue.link.call("XADD", stream, "*", *field)
    second = await queue.enqueue("2")
    assert [a.id for a in await queue.admit(10)] == [first.id, second.id]
    assert await queue.link.call("XLEN", stream) == 2
    await queue.is_whole(in_flight=2)


async def test_entries_of_others_are_not_taken_over(queue: Queue) -> None:
    queued = await queue.enqueue("1")
    await queue.admit(1, worker="dead")
    stream = f"{prefix_of(queue)}:ready:urgent"
    await queue.link.call("XADD", stream, "*", "x", "y")
    await queue.link.call("XREADGROUP", "GROUP", "workers", "dead", "STREAMS", stream, ">")
    await queue.pass_time(int(queue.settings.lease * 1000) + 1)
    assert [a.id for a in await queue.reclaim("b")] == [queued.id]
    await queue.is_whole(in_flight=1)


async def test_a_ready_delivery_without_its_record_is_passed_over(queue: Queue) -> None:
    lost, kept = await queue.enqueue("1"), await queue.enqueue("2")
    await queue.link.call("HDEL", f"{prefix_of(queue)}:deliveries", lost.id.sequence)
    assert [a.id for a in await queue.admit(10)] == [kept.id]
    assert await queue.reader.get(lost.id) is None
    stats = await queue.stats.read()
    assert (stats.ready, stats.in_flight, stats.counter("strays")) == (0, 1, 1)
    assert not stats.conserved  # somebody took it away, and stats say so


async def test_a_delivery_that_loses_its_record_in_flight_leaves_its_stream_when_it_is_settled(
    queue: Queue,
) -> None:
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    await queue.link.call("HDEL", f"{prefix_of(queue)}:deliveries", admitted.id.sequence)
    assert (await queue.settle(admitted, DeliveryState.DELIVERED)).passed_over == {0}
    assert (await queue.stats.read()).in_flight == 0
    assert await queue.link.call("XLEN", f"{prefix_of(queue)}:ready:urgent") == 0


async def test_a_retry_without_its_record_does_not_stop_those_behind_it(queue: Queue) -> None:
    await queue.link.call("ZADD", f"{prefix_of(queue)}:retry", 1, "nonsense", 2, "123")
    queued = await queue.enqueue("1", not_before_ms=await queue.now_ms() + HOUR_MS)
    await queue.pass_time(HOUR_MS + 1)
    await queue.promote()
    assert [a.id for a in await queue.admit(5)] == [queued.id]


async def test_entries_of_others_among_outcomes_are_neither_archived_nor_in_the_way(queue: Queue) -> None:
    partition, log = queue.partition_of(0), f"{prefix_of(queue)}:outcomes"
    ids = []
    for number in range(2):
        await queue.enqueue(str(number))
        (admitted,) = await queue.admit(1)
        await queue.settle(admitted, DeliveryState.DELIVERED)
        ids.append(admitted.id)
        await queue.link.call("XADD", log, "*", "x", "y")
    outcomes, last, _ = await queue.outcomes.read(partition, 0, 10)
    assert [o.id for o in outcomes] == ids
    assert await queue.outcomes.read(partition, last, 10) == ([], last, 0)
    await queue.outcomes.commit(partition, 0, last, 2)
    await queue.pass_time(30 * DAY_MS)
    while await queue.outcomes.trim(partition, 1):
        pass
    assert [await queue.reader.get(id) for id in ids] == [None, None]


async def test_entries_of_others_among_dead_letters_do_not_hide_ours(queue: Queue) -> None:
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE)
    for fields in (("x", "y"), ("d", "1", "o", "nonsense"), ("d", "x", "o", "[]")):
        await queue.link.call("XADD", f"{prefix_of(queue)}:dead", "*", *fields)
    assert [d.id for d in (await queue.dead.page(limit=10)).letters] == [admitted.id]


async def test_a_broken_rest_of_a_delivery_does_not_stop_trimming(queue: Queue) -> None:
    for number in range(2):
        await queue.enqueue(str(number))
        (admitted,) = await queue.admit(1)
        await queue.settle(admitted, DeliveryState.DELIVERED)
        if not number:
            await queue.link.call("HSET", f"{prefix_of(queue)}:deliveries", admitted.id.sequence, b"\x06")
    partition = queue.partition_of(0)
    _, last, count = await queue.outcomes.read(partition, 0, 10)
    await queue.outcomes.commit(partition, 0, last, count)
    await queue.pass_time(30 * DAY_MS)
    assert await queue.outcomes.trim(partition, 10) == 2
    assert await queue.reader.get(admitted.id) is None


async def test_a_message_that_cannot_be_read_is_told(queue: Queue) -> None:
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    key = queue.keys.partition(admitted.id.partition).message(admitted.record.message)
    await queue.link.call("HSET", key, "m", "nonsense")
    with pytest.raises(QueueCorrupt):
        await queue.consumer("a").message(admitted.id.partition, admitted.record.message)
    await queue.link.call("DEL", key)
    assert await queue.consumer("a").message(admitted.id.partition, admitted.record.message) is None
