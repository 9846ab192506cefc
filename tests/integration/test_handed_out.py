"""What a worker is told of the deliveries that it is handed, whichever way they come to it: out of the stream
into which they were put, out of lines in front of it, or out of their hosts' lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from servers.queue import HOUR_MS, Queue, ids

from fedsvc.domain.delivery import DeliveryState, Priority
from fedsvc.domain.knock import Dialect
from fedsvc.queue.consumer import Messages, Shares, Signal
from fedsvc.queue.hosts import HostRecord

DAY_MS = 24 * HOUR_MS
SHARES = Shares(100, 60, 30, 10)
EVERY_WAY = pytest.mark.parametrize("way", ["stream", "line", "lane"])


@pytest.fixture
def limits(request: pytest.FixtureRequest) -> dict[str, str]:
    way = getattr(request.node, "callspec", None)
    return {"FEDSVC_READY_WINDOW": "1" if way and way.params.get("way") == "line" else "512"}


def neighbours(queue: Queue, many: int) -> list[int]:
    """Inboxes of hosts of one partition, 0 among them."""
    return [n for n in range(100) if queue.partition_of(n) == queue.partition_of(0)][:many]


async def wait_in_lanes(queue: Queue, inboxes: Sequence[int]) -> None:
    """All that is ready; their hosts can take it again."""
    for inbox in inboxes:
        await queue.hosts.pause(f"h{inbox}.example")
    assert (await queue.consumer("a").admit(queue.partition_of(0), SHARES)).admitted == []
    for inbox in inboxes:
        await queue.hosts.resume(f"h{inbox}.example")


async def knows(queue: Queue, inbox: int, **state: Any) -> None:
    prefix = queue.keys.partition(queue.partition_of(inbox)).prefix
    now_ms = float(await queue.now_ms())
    packed = HostRecord(**{"limit": 100, "spoke": now_ms, "filled": now_ms} | state).pack()
    await queue.link.call("HSET", f"{prefix}:hosts", f"h{inbox}.example", packed)


@EVERY_WAY
async def test_each_is_signed_as_its_own_host_wants_it(queue: Queue, way: str) -> None:
    inboxes = neighbours(queue, 4)
    # one that is not known to this version, and two digits long
    forms = dict(zip(inboxes, (Dialect.RFC9421, 0, 12, Dialect.CAVAGE_PATH), strict=True))
    for inbox, form in forms.items():
        await knows(queue, inbox, dialect=form)
    for number in range(3):
        for inbox in inboxes:
            await queue.enqueue(f"{number}-{inbox}", inbox=inbox, priority=Priority.BULK)
    if way == "lane":
        await wait_in_lanes(queue, inboxes)
    handed = (await queue.consumer("a").admit(queue.partition_of(0), SHARES)).admitted
    assert len(handed) == 12
    assert {admitted.stream for admitted in handed} == {4 if way == "lane" else 3}
    for admitted in handed:
        inbox = int(admitted.record.inbox.removeprefix("https://h").split(".")[0])
        expected = Dialect.UNKNOWN if forms[inbox] == 12 else forms[inbox]
        assert (admitted.problem, admitted.times, admitted.dialect) == ("", 1, expected)


@EVERY_WAY
@pytest.mark.parametrize("messages", Messages)
async def test_the_messages_that_were_asked_for_come_along_once_each(
    queue: Queue, way: str, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    run = queue.link.run

    async def noted(*args: Any) -> Any:
        answers.append(await run(*args))
        return answers[-1]

    inboxes = neighbours(queue, 3)
    expected = set()
    for priority in Priority:
        asked = messages is Messages.ALL or (messages is Messages.URGENT and priority is Priority.URGENT)
        for inbox in inboxes:
            await queue.enqueue(f"{priority}", inbox=inbox, priority=priority)
            if asked:
                expected.add(f"https://me.example/{priority}")
    if way == "lane":
        await wait_in_lanes(queue, inboxes)
    monkeypatch.setattr(queue.link, "run", noted)
    handed = await queue.consumer("a").admit(queue.partition_of(0), SHARES, messages=messages)
    assert len(handed.admitted) == 9
    assert len(answers[0][1]) == 3 * len(expected), "number, body and fields of each"
    assert {message.activity_id for message in handed.messages.values()} == expected
    of_them = {a.record.message for a in handed.admitted}
    assert set(handed.messages) <= of_them


@EVERY_WAY
async def test_it_is_in_flight_with_the_worker_that_was_told(queue: Queue, way: str) -> None:
    inboxes = neighbours(queue, 2)
    for number in range(10):
        await queue.enqueue(str(number), inbox=inboxes[number % 2], priority=Priority.BULK)
    if way == "lane":
        await wait_in_lanes(queue, inboxes)
    partition = queue.partition_of(0)
    first = (await queue.consumer("a").admit(partition, Shares(4, 0, 0, 4))).admitted
    second = (await queue.consumer("b").admit(partition, Shares(100, 0, 0, 100))).admitted
    assert (len(first), len(second)) == (4, 6)
    assert not set(ids(first)) & set(ids(second))
    for worker, handed in (("a", first), ("b", second)):
        assert (await queue.consumer(worker).admit(partition, SHARES)).admitted == []
        found = await queue.consumer(worker).recover(partition, 100)
        assert sorted((a.id, a.stream, a.entry, a.times) for a in found) == sorted(
            (a.id, a.stream, a.entry, a.times) for a in handed
        )
    await queue.consumer("a").leave(partition)
    taken = await queue.consumer("b").reclaim(partition, 100)
    assert {(a.id, a.times) for a in taken} == {(a.id, 2) for a in first}
    for admitted in [*taken, *second]:
        await queue.settle(admitted, DeliveryState.DELIVERED, worker="b")
    await queue.is_whole(delivered=10)


@EVERY_WAY
async def test_figures_tell_of_each_priority_how_many_are_in_flight(queue: Queue, way: str) -> None:
    for number, priority in enumerate([Priority.URGENT] + 2 * [Priority.NORMAL] + 3 * [Priority.BULK]):
        await queue.enqueue(str(number), priority=priority)
    if way == "lane":
        await wait_in_lanes(queue, [0])
    handed = (await queue.consumer("a").admit(queue.partition_of(0), SHARES)).admitted
    assert len(handed) == 6
    for expected in ((1, 2, 3), (0, 1, 2)):
        figures = (await queue.stats.read()).priorities
        assert tuple(figures[priority].in_flight for priority in Priority) == expected
        for priority in Priority if expected[0] else ():
            admitted = next(each for each in handed if each.record.priority is priority)
            await queue.settle(admitted, DeliveryState.DELIVERED)


@pytest.mark.parametrize("lost", ["b", "m"])
async def test_a_message_that_is_not_whole_does_not_come_along(queue: Queue, lost: str) -> None:
    queued = [await queue.enqueue(activity) for activity in ("1", "2")]
    keys = queue.keys.partition(queue.partition_of(0))
    (first,) = await queue.admit(1)
    await queue.link.call("HDEL", keys.message(first.record.message), lost)
    await queue.settle(first, DeliveryState.RETRY)
    await queue.promote()
    handed = await queue.consumer("a").admit(queue.partition_of(0), SHARES, messages=Messages.ALL)
    assert set(ids(handed.admitted)) == set(ids(queued))
    assert [message.activity_id for message in handed.messages.values()] == ["https://me.example/2"]


@pytest.mark.parametrize("apart_ms", [-8 * DAY_MS, 8 * DAY_MS])
async def test_a_form_that_was_learnt_long_ago_or_by_another_clock_is_forgotten(
    queue: Queue, apart_ms: int
) -> None:
    await knows(queue, 0, dialect=Dialect.RFC9421, spoke=float(await queue.now_ms() + apart_ms))
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    assert admitted.dialect is Dialect.UNKNOWN


@pytest.mark.parametrize("garbage", [b"", b"short", b"\1" * 126, b"\1" * 200])
async def test_a_host_whose_state_cannot_be_read_is_as_one_that_is_new(queue: Queue, garbage: bytes) -> None:
    """As that of an older build, or of a newer one, found while it is handed out, or while it is settled."""
    key = f"{queue.keys.partition(queue.partition_of(0)).prefix}:hosts"
    for activity in ("1", "2"):
        await queue.link.call("HSET", key, "h0.example", garbage)
        await queue.enqueue(activity)
        (admitted,) = await queue.admit(10)
        assert HostRecord.unpack(await queue.link.call("HGET", key, "h0.example")).flying == 1
        await queue.link.call("HSET", key, "h0.example", garbage)
        await queue.deliver(admitted)
        assert HostRecord.unpack(await queue.link.call("HGET", key, "h0.example")).flying == 0
    await queue.is_whole(delivered=2)


@pytest.mark.parametrize(("state", "expected"), [({"success": 1.0}, 1), ({"cut": 1.0}, 0), ({}, 0)])
async def test_a_host_that_has_taken_something_gets_one_urgent_beyond_its_limit(
    queue: Queue, state: dict[str, float], expected: int
) -> None:
    await knows(queue, 0, limit=2, flying=2, **state)
    for number in range(2):
        await queue.enqueue(f"bulk{number}", priority=Priority.BULK)
        await queue.enqueue(f"urgent{number}")
    handed = (await queue.consumer("a").admit(queue.partition_of(0), SHARES)).admitted
    assert [admitted.record.priority for admitted in handed] == expected * [Priority.URGENT]
    shown = await queue.hosts.get("h0.example")
    assert (shown.in_flight, shown.parked) == (2 + expected, 4 - expected)


async def test_a_host_that_is_said_to_have_nothing_in_flight_never_has_less(queue: Queue) -> None:
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    await knows(queue, 0)
    await queue.deliver(admitted)
    assert (await queue.hosts.get("h0.example")).in_flight == 0


@pytest.mark.parametrize("length", [0, 1, 9, 28, 29])
async def test_what_is_left_of_a_damaged_record_is_handed_to_nobody_again(queue: Queue, length: int) -> None:
    queued = [await queue.enqueue(str(number)) for number in range(2)]
    await queue.admit(2)
    partition = queue.partition_of(0)
    key = queue.keys.partition(partition).deliveries
    record = await queue.link.call("HGET", key, queued[0].id.sequence)
    await queue.link.call("HSET", key, queued[0].id.sequence, record[:length])
    await queue.hosts.audit(partition)
    await queue.consumer("a").leave(partition)
    assert ids(await queue.consumer("b").reclaim(partition, 10)) == [queued[1].id]
    assert (await queue.stats.read()).in_flight == 1


async def test_what_is_parked_behind_others_of_its_host_may_go_with_them_at_once(queue: Queue) -> None:
    queued = [await queue.enqueue(str(number), priority=Priority.BULK) for number in range(2)]
    await wait_in_lanes(queue, [0])
    queued += [await queue.enqueue(str(number), priority=Priority.BULK) for number in range(2, 4)]
    handed = (await queue.consumer("a").admit(queue.partition_of(0), SHARES)).admitted
    handed += (await queue.consumer("a").admit(queue.partition_of(0), SHARES)).admitted
    assert ids(handed) == ids(queued)
    await queue.is_whole(in_flight=4)


@pytest.mark.parametrize("more", [{"learnt": Dialect.RFC9421}, {"pause_ms": 60_000}])
async def test_what_a_host_says_besides_taking_a_delivery_is_heard(
    queue: Queue, more: dict[str, Any]
) -> None:
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    taken = Signal.ANSWERED | Signal.TOOK
    await queue.settle(admitted, DeliveryState.DELIVERED, signal=taken, **more)
    await queue.enqueue("2")
    dialects = [each.dialect for each in await queue.admit(1)]
    assert dialects == ([Dialect.RFC9421] if "learnt" in more else [])


async def test_a_host_that_takes_a_delivery_and_asks_for_fewer_gets_fewer(queue: Queue) -> None:
    await knows(queue, 0)
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    signal = Signal.ANSWERED | Signal.TOOK | Signal.SLOWED
    await queue.settle(admitted, DeliveryState.DELIVERED, signal=signal)
    assert (await queue.hosts.get("h0.example")).limit == 50
