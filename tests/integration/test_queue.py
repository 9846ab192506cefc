"""Every transition of a delivery, on a real server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from servers.queue import HOUR_MS, Queue

from fedsvc.domain.delivery import DeliveryState, Priority, Reason
from fedsvc.errors import ConfigurationError, RequestIdReused
from fedsvc.queue.consumer import Messages, Shares
from fedsvc.queue.format import FORMAT, formats_of, record_format
from fedsvc.queue.producer import Producer
from fedsvc.queue.server_info import record_partitions


async def test_what_is_accepted_waits_for_a_worker(queue: Queue) -> None:
    queued = await queue.enqueue("1")
    delivery = await queue.get(queued.id)
    assert delivery.state is DeliveryState.READY
    assert (delivery.activity_id, delivery.host) == ("https://me.example/1", "h0.example")
    await queue.is_whole(ready=1)


async def test_an_activity_goes_to_an_inbox_once_within_task_ttl(queue: Queue) -> None:
    first = await queue.enqueue("1")
    assert await queue.enqueue("1") == (first.id, True)
    assert not (await queue.enqueue("1", inbox=1)).duplicate
    again = await queue.enqueue("1", allow_duplicate=True)
    assert not again.duplicate
    await queue.pass_time(queue.settings.task_ttl * 1000 + 1)
    assert not (await queue.enqueue("1")).duplicate
    await queue.is_whole(ready=4)


async def test_a_fan_out_tells_new_from_known_inboxes(queue: Queue) -> None:
    assert await queue.fan_out("1", range(10)) == (10, 0)
    assert await queue.fan_out("1", range(5, 20)) == (10, 5)
    # few inboxes and many are looked up in different ways
    assert await queue.fan_out("1", [3, 30]) == (1, 1)
    assert (
        len(
            await queue.reader.list_activity("https://me.example/1", after=None, limit=99, states=frozenset())
        )
        == 21
    )


async def test_a_repeated_request_gets_the_first_answer_and_another_call_is_refused(queue: Queue) -> None:
    first = await queue.enqueue("1", request_id="r")
    assert await queue.enqueue("1", request_id="r") == first
    assert await queue.fan_out("2", range(50), request_id="f") == (50, 0)
    assert await queue.fan_out("2", range(50), request_id="f") == (50, 0)
    with pytest.raises(RequestIdReused):
        await queue.enqueue("3", request_id="r")
    await queue.is_whole(ready=51)


@pytest.mark.parametrize(
    "other",
    [
        {"priority": Priority.BULK}, {"not_before_ms": 1}, {"expire_ms": 253_402_300_799_000},
        {"allow_duplicate": True}, {"path": "/other"},
    ],
)  # fmt: skip
async def test_a_repeated_request_on_other_terms_is_refused(queue: Queue, other: dict[str, Any]) -> None:
    await queue.enqueue("1", request_id="r")
    with pytest.raises(RequestIdReused):
        await queue.enqueue("1", request_id="r", **other)
    await queue.is_whole(ready=1)


async def test_a_fan_out_that_broke_half_way_is_finished_by_repeating_it(queue: Queue) -> None:
    first_part = [n for n in range(60) if queue.partition_of(n) < 2]
    await queue.fan_out("1", first_part, request_id="f")
    accepted, duplicates = await queue.fan_out("1", range(60), request_id="g")
    assert (accepted, duplicates) == (60 - len(first_part), len(first_part))
    await queue.is_whole(ready=60)


async def test_a_fan_out_in_several_parts_is_repeated_under_its_name(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Producer, "CHUNK", 5)
    for _ in range(2):
        assert await queue.fan_out("1", range(60), request_id="f") == (60, 0)
    await queue.is_whole(ready=60)


async def test_a_time_of_expiry_between_two_seconds_or_in_thousands_of_years_is_kept(queue: Queue) -> None:
    between = (await queue.now_ms() + HOUR_MS) // 1000 * 1000 + 1
    assert (await queue.get((await queue.enqueue("1", expire_ms=between)).id)).expire_ms >= between
    await queue.enqueue("2", expire_ms=253_402_300_799_000)
    await queue.is_whole(ready=2)


async def test_a_body_is_stored_once_and_goes_with_its_last_delivery(queue: Queue) -> None:
    inboxes = [n for n in range(60) if queue.partition_of(n) == queue.partition_of(0)][:4]
    await queue.fan_out("1", inboxes[:3])
    await queue.enqueue("1", inbox=inboxes[3])
    assert len(await queue.keys_of("message")) == 1
    taken = await queue.admit(10)
    for admitted in taken[:3]:
        await queue.settle(admitted, DeliveryState.DELIVERED)
    assert len(await queue.keys_of("message")) == 1
    await queue.settle(taken[3], DeliveryState.DELIVERED)
    assert await queue.keys_of("message") == []
    await queue.is_whole(delivered=4)


async def test_a_dead_letter_keeps_its_body(queue: Queue) -> None:
    queued = await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE)
    shown = await queue.get(queued.id)
    assert (shown.state, shown.reason) == (DeliveryState.DEAD, Reason.GONE)
    assert await queue.reader.body(queued.id) == b'{"id":"https://me.example/1"}'
    (letter,) = (await queue.dead.page(limit=10)).letters
    assert letter == shown
    await queue.is_whole(dead=1)


async def test_priorities_get_their_shares_and_what_others_leave(queue: Queue) -> None:
    for number in range(30):
        await queue.enqueue(f"u{number}", priority=Priority.URGENT)
        await queue.enqueue(f"b{number}", priority=Priority.BULK)
    taken = await queue.consumer("a").admit(queue.partition_of(0), Shares(10, 6, 3, 1))
    by_priority = [a.record.priority for a in taken.admitted]
    assert (by_priority.count(Priority.URGENT), by_priority.count(Priority.BULK)) == (9, 1)
    rest = await queue.consumer("a").admit(queue.partition_of(0), Shares(100, 60, 30, 10))
    assert len(rest.admitted) == 50


async def test_deliveries_bring_their_messages_along_for_whoever_wants_them(queue: Queue) -> None:
    await queue.enqueue("1", priority=Priority.URGENT)
    await queue.enqueue("2", priority=Priority.NORMAL)
    consumer, shares = queue.consumer("a"), Shares(10, 6, 3, 1)
    taken = await consumer.admit(queue.partition_of(0), shares, only_urgent=True, messages=Messages.ALL)
    (admitted,) = taken.admitted
    assert list(taken.messages) == [admitted.record.message]
    assert taken.messages[admitted.record.message].body == b'{"id":"https://me.example/1"}'
    rest = await consumer.admit(queue.partition_of(0), shares)
    assert (len(rest.admitted), rest.messages) == (1, {})


async def test_each_outcome_is_counted_and_recorded(queue: Queue) -> None:
    outcomes = [DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.EXPIRED]
    for number, state in enumerate(outcomes):
        await queue.enqueue(str(number))
        (admitted,) = await queue.admit(1)
        await queue.settle(admitted, state)
    recorded, _, count = await queue.outcomes.read(queue.partition_of(0), 0, 10)
    assert [d.state for d in recorded] == outcomes
    assert count == 3
    await queue.is_whole(delivered=1, dead=1, expired=1)


async def test_a_delivery_is_settled_once_whoever_comes_second(queue: Queue) -> None:
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    assert (await queue.settle(admitted, DeliveryState.DELIVERED)).passed_over == set()
    for state in (DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.RETRY):
        assert (await queue.settle(admitted, state)).passed_over == {0}
    await queue.is_whole(delivered=1)


async def test_a_retry_is_not_undone_by_somebody_who_settles_late(queue: Queue) -> None:
    await queue.enqueue("1")
    (late,) = await queue.admit(1, worker="late")
    await queue.pass_time(int(queue.settings.lease * 1000) + 1)
    (taken,) = await queue.reclaim("b")
    await queue.settle(taken, DeliveryState.RETRY, wait_ms=HOUR_MS, worker="b")
    for state in (DeliveryState.DELIVERED, DeliveryState.RETRY, DeliveryState.DEAD):
        assert (await queue.settle(late, state, worker="late")).passed_over == {0}
    await queue.is_whole(retry=1)


async def test_a_retry_waits_until_it_is_due_and_keeps_its_history(queue: Queue) -> None:
    queued = await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    await queue.settle(admitted, DeliveryState.RETRY, Reason.UNAVAILABLE, wait_ms=HOUR_MS)
    shown = await queue.get(queued.id)
    assert (shown.state, shown.attempts, shown.reason) == (DeliveryState.RETRY, 1, Reason.UNAVAILABLE)
    retries = await queue.stats.read_retries()
    assert (retries.retry, retries.due, dict(retries.by_attempt)) == (1, 0, {1: 1})
    assert (dict(retries.by_type), dict(retries.by_reason)) == ({"Like": 1}, {Reason.UNAVAILABLE: 1})
    assert sum(retries.histogram) == 1
    assert await queue.promote() == 0
    await queue.pass_time(HOUR_MS + 1)
    assert await queue.promote() == 1
    (again,) = await queue.admit(1)
    assert again.record.history == shown.history
    assert sum((await queue.stats.read_retries()).by_attempt.values()) == 0
    await queue.settle(again, DeliveryState.DELIVERED)
    await queue.is_whole(delivered=1)


async def test_what_is_scheduled_waits_for_its_time(queue: Queue) -> None:
    now_ms = await queue.now_ms()
    queued = await queue.enqueue("1", not_before_ms=now_ms + HOUR_MS)
    assert (await queue.get(queued.id)).state is DeliveryState.SCHEDULED
    assert await queue.admit(1) == []
    await queue.is_whole(scheduled=1)
    await queue.pass_time(HOUR_MS + 1)
    assert await queue.promote() == 1
    assert len(await queue.admit(1)) == 1
    await queue.is_whole(in_flight=1)


async def test_the_deadline_counts_from_not_before_and_the_caller_may_shorten_it(queue: Queue) -> None:
    now_ms = await queue.now_ms()
    await queue.enqueue("1", not_before_ms=now_ms + HOUR_MS)
    await queue.enqueue("2", expire_ms=now_ms + 2 * HOUR_MS)
    await queue.pass_time(HOUR_MS + 1)
    await queue.promote()
    by_id = {a.record.expires: a.record for a in await queue.admit(5)}
    whole_life = queue.settings.max_retry_duration
    assert by_id[False].deadline_s == pytest.approx((now_ms + HOUR_MS) / 1000 + whole_life, abs=2)
    assert by_id[True].expire_ms == pytest.approx(now_ms + 2 * HOUR_MS, abs=1000)


async def test_what_a_dead_worker_held_is_taken_over_when_its_lease_ends(queue: Queue) -> None:
    queued = await queue.enqueue("1")
    await queue.admit(1, worker="dead")
    assert (await queue.get(queued.id)).state is DeliveryState.IN_FLIGHT
    assert await queue.reclaim("alive") == []
    await queue.pass_time(int(queue.settings.lease * 1000) + 1)
    (taken,) = await queue.reclaim("alive")
    assert (taken.id, taken.times) == (queued.id, 2)
    assert await queue.reclaim("other") == []
    await queue.settle(taken, DeliveryState.DELIVERED)
    await queue.is_whole(delivered=1)


async def test_a_live_worker_keeps_what_takes_long(queue: Queue) -> None:
    await queue.enqueue("1")
    await queue.admit(1, worker="slow")
    for _ in range(5):
        await queue.pass_time(int(queue.settings.lease * 500))
        await queue.reclaim("slow")  # its heartbeat
        assert await queue.reclaim("other") == []
    await queue.is_whole(in_flight=1)


async def test_a_worker_finds_what_it_was_handed_in_a_lost_answer(queue: Queue) -> None:
    queued = await queue.enqueue("1")
    await queue.admit(1, worker="a")
    (found,) = await queue.consumer("a").recover(queue.partition_of(0), 10)
    assert found.id == queued.id
    assert await queue.consumer("b").recover(queue.partition_of(0), 10) == []


async def test_a_worker_that_leaves_hands_over_at_once_and_is_forgotten(queue: Queue) -> None:
    queued = await queue.enqueue("1")
    (held,) = await queue.admit(1, worker="a")
    partition = queue.partition_of(0)
    assert await queue.consumer("a").leave(partition) == 1
    (taken,) = await queue.reclaim("b")
    assert taken.id == queued.id
    await queue.reclaim("b")
    assert await queue.workers() == {"b"}
    await queue.settle(held, DeliveryState.DELIVERED)
    assert await queue.consumer("b").leave(partition) == 0
    assert await queue.workers() == set()


async def test_strays_in_a_stream_block_nothing(queue: Queue) -> None:
    prefix = queue.keys.partition(queue.partition_of(0)).prefix
    for field in (("x", "y"), ("d", "nonsense"), ("d", "123")):
        await queue.link.call("XADD", f"{prefix}:ready:urgent", "*", *field)
    # the entries above have ids of milliseconds, ours of microseconds: ours come behind them
    queued = await queue.enqueue("1")
    (admitted,) = await queue.admit(10)
    assert admitted.id == queued.id
    await queue.settle(admitted, DeliveryState.DELIVERED)
    await queue.is_whole(delivered=1)


async def test_a_record_that_cannot_be_read_is_told_and_becomes_a_dead_letter(queue: Queue) -> None:
    queued = await queue.enqueue("1")
    prefix = queue.keys.partition(queue.partition_of(0)).prefix
    broken = bytes([1, 0, 99]) + bytes(30)
    await queue.link.call("HSET", f"{prefix}:deliveries", queued.id.sequence, broken)
    (admitted,) = await queue.admit(1)
    assert admitted.problem
    await queue.settle(admitted, DeliveryState.DEAD, Reason.MALFORMED_ENTRY)
    await queue.is_whole(dead=1)


async def test_nothing_is_forgotten_before_it_is_archived(queue: Queue) -> None:
    queued = await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    await queue.settle(admitted, DeliveryState.DELIVERED)
    await queue.pass_time(100 * HOUR_MS)
    partition = queue.partition_of(0)
    assert await queue.outcomes.trim(partition, 100) == 0
    (outcome,), last, count = await queue.outcomes.read(partition, 0, 10)
    assert (await queue.stats.read()).archive_backlog == 1
    await queue.outcomes.commit(partition, 0, last, count)
    assert (await queue.stats.read()).archive_backlog == 0
    assert await queue.outcomes.position(partition) == outcome.outcome
    assert await queue.outcomes.read(partition, last, 10) == ([], last, 0)
    assert (await queue.get(queued.id)).state is DeliveryState.DELIVERED
    assert await queue.outcomes.trim(partition, 100) == 1
    assert await queue.reader.get(queued.id) is None
    await queue.is_whole(delivered=1)


async def test_a_dead_letter_outlives_its_outcome(queue: Queue) -> None:
    queued = await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    await queue.settle(admitted, DeliveryState.DEAD)
    partition = queue.partition_of(0)
    _, last, count = await queue.outcomes.read(partition, 0, 10)
    await queue.outcomes.commit(partition, 0, last, count)
    await queue.pass_time(100 * HOUR_MS)
    assert await queue.outcomes.trim(partition, 100) == 1
    assert (await queue.get(queued.id)).state is DeliveryState.DEAD


async def test_one_at_a_time_archives_a_partition(queue: Queue) -> None:
    assert await queue.outcomes.lead(0, "a")
    assert not await queue.outcomes.lead(0, "b")
    assert await queue.outcomes.lead(0, "a")
    await queue.outcomes.resign(0, "b")
    assert not await queue.outcomes.lead(0, "b")
    await queue.outcomes.resign(0, "a")
    assert await queue.outcomes.lead(0, "b")


async def test_an_emptied_redis_is_used_like_a_new_one(queue: Queue) -> None:
    await queue.enqueue("1")
    await queue.admit(1)
    await queue.empty()
    assert await queue.admit(1) == []
    assert await queue.reclaim("b") == []
    await queue.enqueue("1")
    assert len(await queue.admit(1)) == 1
    await queue.is_whole(in_flight=1)


async def test_the_number_of_partitions_cannot_change(queue: Queue) -> None:
    await record_partitions(queue.link, queue.keys, queue.settings)
    other = queue.settings.model_copy(update={"partitions": 5})
    with pytest.raises(ConfigurationError, match="FEDSVC_PARTITIONS"):
        await record_partitions(queue.link, queue.keys, other)


async def test_formats_are_written_down_once_and_a_neighbour_may_be_newer(queue: Queue) -> None:
    await record_format(queue.link, queue.keys)
    await queue.link.call("HSET", queue.keys.formats, FORMAT, "0.0.9")
    await record_format(queue.link, queue.keys)
    assert await formats_of(queue.link, queue.keys) == {FORMAT: "0.0.9"}
    await queue.link.call("HSET", queue.keys.formats, FORMAT + 1, "8.0.0")
    await record_format(queue.link, queue.keys)
    await queue.link.call("HSET", queue.keys.formats, FORMAT + 2, "9.0.0")
    with pytest.raises(ConfigurationError, match=rf"in format {FORMAT + 2}, of fedsvc 9.0.0"):
        await record_format(queue.link, queue.keys)


async def test_an_activity_is_summed_up_without_its_rows(queue: Queue) -> None:
    await queue.fan_out("1", range(40))
    for admitted in (await queue.admit_everywhere())[:15]:
        await queue.settle(admitted, DeliveryState.DELIVERED)
    total, counts = await queue.reader.count_activity("https://me.example/1")
    assert total == 40
    assert counts == {DeliveryState.DELIVERED: 15, DeliveryState.READY: 25}


async def test_replace_is_only_for_records(queue: Queue) -> None:
    """A record that went through a retry is the same but for state, place and history."""
    await queue.enqueue("1")
    (first,) = await queue.admit(1)
    await queue.settle(first, DeliveryState.RETRY, wait_ms=1)
    await queue.pass_time(10)
    await queue.promote()
    (second,) = await queue.admit(1)
    same = replace(second.record, place=first.record.place, history=(), attempts=0, tries=0)
    assert same == first.record


@pytest.mark.parametrize("how", ["admit", "recover", "reclaim"])
async def test_whoever_is_handed_deliveries_knows_the_time_of_redis(queue: Queue, how: str) -> None:
    await queue.pass_time(-72 * HOUR_MS)
    await queue.enqueue("1")
    consumer, partition = queue.consumer("new"), queue.partition_of(0)
    assert not consumer.clock.known
    if how == "admit":
        (admitted,) = (await consumer.admit(partition, Shares(1, 1, 0, 0))).admitted
        assert admitted.record.deadline_s * 1000 > consumer.clock.now_ms()
    elif how == "recover":
        await consumer.recover(partition, 1)
    else:
        await consumer.reclaim(partition, 1)
    assert abs(consumer.clock.now_ms() - await queue.now_ms()) < 60_000
