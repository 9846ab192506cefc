"""The log of outcomes: what is delivered in one script is one entry of it, and no reader can tell."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Sequence

import pytest
from servers.queue import HOUR_MS, Queue

from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState, Reason
from fedsvc.domain.events import HostEvent
from fedsvc.queue.consumer import Admitted, Settled, Signal

DAY_MS = 24 * HOUR_MS
DELIVERED, RETRY, DEAD = DeliveryState.DELIVERED, DeliveryState.RETRY, DeliveryState.DEAD
WELL = Signal.ANSWERED | Signal.TOOK
NAMES = itertools.count()


async def admitted(queue: Queue, count: int) -> list[Admitted]:
    for number in itertools.islice(NAMES, count):
        await queue.enqueue(f"{number}", path=f"/{number}/inbox")
    return await queue.admit(count)


async def settle(queue: Queue, ended: Sequence[tuple[Admitted, DeliveryState]], worker: str = "a") -> Settled:
    """All in one script."""
    settlements = [
        await queue.settlement(each, state, signal=WELL if state is DELIVERED else Signal.ANSWERED)
        for each, state in ended
    ]
    return await queue.consumer(worker).settle(queue.partition_of(0), settlements)


async def delivered(queue: Queue, count: int) -> list[Admitted]:
    """In one script."""
    some = await admitted(queue, count)
    assert not (await settle(queue, [(each, DELIVERED) for each in some])).passed_over
    return some


async def entries(queue: Queue) -> int:
    return int(await queue.link.call("XLEN", queue.keys.partition(queue.partition_of(0)).outcomes))


async def logged(queue: Queue, after: int = 0, limit: int = 1000) -> list[Delivery]:
    found, _, _ = await queue.outcomes.read(queue.partition_of(0), after, limit)
    return found


def ids(some: Sequence[Admitted | Delivery]) -> list[DeliveryId]:
    return [each.id for each in some]


async def test_what_is_delivered_in_one_script_is_one_entry_and_read_one_by_one(queue: Queue) -> None:
    some = await delivered(queue, 20)
    assert await entries(queue) == 1
    found = await logged(queue)
    assert ids(found) == ids(some)
    assert [outcome.inbox for outcome in found] == [each.record.inbox for each in some]
    numbers = [outcome.outcome for outcome in found]
    assert numbers == list(range(numbers[0], numbers[0] + 20))
    await queue.is_whole(delivered=20)


async def test_each_of_them_is_shown_with_its_own_outcome(queue: Queue) -> None:
    await delivered(queue, 3)
    some = await delivered(queue, 20)
    shown = [await queue.get(each.id) for each in some]
    assert shown == (await logged(queue))[3:]


async def test_others_in_the_same_script_have_entries_of_their_own(queue: Queue) -> None:
    some = await admitted(queue, 9)
    states = [DELIVERED, RETRY, DEAD] * 3
    await settle(queue, list(zip(some, states, strict=True)))
    assert await entries(queue) == 4
    found = {outcome.id: outcome for outcome in await logged(queue)}
    assert {id: outcome.state for id, outcome in found.items()} == {
        each.id: state for each, state in zip(some, states, strict=True) if state is not RETRY
    }
    assert all(found[each.id].inbox == each.record.inbox for each in some if each.id in found)
    await queue.is_whole(delivered=3, dead=3, retry=3)


@pytest.mark.parametrize("early", [[0], [4], [9], [0, 1, 5, 8, 9], list(range(9)), list(range(10))])
async def test_those_that_somebody_else_has_settled_are_left_out(queue: Queue, early: list[int]) -> None:
    some = await admitted(queue, 10)
    await settle(queue, [(some[number], DELIVERED) for number in early])
    settled = await settle(queue, [(each, DELIVERED) for each in some], worker="b")
    assert settled.passed_over == set(early)
    late = [number for number in range(10) if number not in early]
    found = await logged(queue)
    assert ids(found) == [some[number].id for number in early + late]
    assert [outcome.inbox for outcome in found] == [some[number].record.inbox for number in early + late]
    assert [(await queue.get(outcome.id)) for outcome in found] == found
    await queue.is_whole(delivered=10)


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_is_settled_together_the_first_word_on_each_holds(queue: Queue, seed: int) -> None:
    dice = random.Random(seed)
    some = await admitted(queue, 12)
    said: dict[DeliveryId, DeliveryState] = {}
    for size in (4, 30):
        batch = [(dice.choice(some), dice.choice([DELIVERED, DELIVERED, RETRY, DEAD])) for _ in range(size)]
        late = set()
        for index, (each, state) in enumerate(batch):
            if each.id in said:
                late.add(index)
            else:
                said[each.id] = state
        assert (await settle(queue, batch)).passed_over == late
    found = {outcome.id: outcome for outcome in await logged(queue)}
    assert {id: outcome.state for id, outcome in found.items()} == {
        id: state for id, state in said.items() if state is not RETRY
    }
    assert all(found[each.id].inbox == each.record.inbox for each in some if each.id in found)
    await queue.conserved()


async def test_one_that_is_there_twice_ends_once(queue: Queue) -> None:
    one, other = await admitted(queue, 2)
    assert (await settle(queue, [(one, DELIVERED), (other, DELIVERED), (one, DELIVERED)])).passed_over == {2}
    assert ids(await logged(queue)) == ids([one, other])
    await queue.is_whole(delivered=2)


async def test_reading_goes_on_within_an_entry(queue: Queue) -> None:
    some = await delivered(queue, 5) + await delivered(queue, 5)
    found = await logged(queue)
    for read in range(10):
        after = found[read].outcome
        assert await logged(queue, after) == found[read + 1 :]
        followed = await queue.outcomes.follow(queue.partition_of(0), after, 100)
        assert followed.entries == found[read + 1 :]
        assert followed.last == found[-1].outcome
        assert not followed.restarted
    assert ids(found) == ids(some)


@pytest.mark.parametrize("limit", [1, 2, 7, 50, 1000])
async def test_however_few_are_read_at_a_time_none_is_missed_or_counted_twice(
    queue: Queue, limit: int
) -> None:
    await delivered(queue, 128)
    for number in range(12):
        await settle(queue, [(each, DEAD if number % 2 else DELIVERED) for each in await admitted(queue, 1)])
    await delivered(queue, 64)
    whole = await logged(queue)
    assert len(whole) == 128 + 12 + 64
    read: list[Delivery] = []
    after, counted = 0, 0
    while True:
        some, last, count = await queue.outcomes.read(queue.partition_of(0), after, limit)
        assert count < limit + 8 * 128
        if not count:
            break
        await queue.outcomes.commit(queue.partition_of(0), after, last, count)
        read, after, counted = read + some, last, counted + count
    assert read == whole
    assert counted == len(whole)
    stats = await queue.stats.read()
    assert (stats.counter("outcomes"), stats.counter("archived")) == (len(whole), len(whole))


@pytest.mark.parametrize("limit", [1, 8, 50, 1000])
async def test_who_follows_never_holds_more_than_an_entry_too_many(queue: Queue, limit: int) -> None:
    partition = queue.partition_of(0)
    for _ in range(3):
        await delivered(queue, 1)
        for _ in range(8):
            await delivered(queue, 20)
    whole = await logged(queue)
    assert len(whole) == 3 * 161
    read: list[Delivery | HostEvent] = []
    after = 0
    while (followed := await queue.outcomes.follow(partition, after, limit)).entries:
        assert min(limit, len(whole) - len(read)) <= len(followed.entries) < limit + 20
        read += followed.entries
        after = followed.last
    assert read == whole


async def test_an_archiver_that_was_overtaken_counts_the_rest_alone(queue: Queue) -> None:
    partition = queue.partition_of(0)
    await delivered(queue, 10)
    _, early, few = await queue.outcomes.read(partition, 0, 1000)
    await delivered(queue, 10)
    _, late, all_of_them = await queue.outcomes.read(partition, 0, 1000)
    await queue.outcomes.commit(partition, 0, early, few)
    await queue.outcomes.commit(partition, 0, late, all_of_them)
    assert (await queue.stats.read()).counter("archived") == 20


async def test_all_of_an_entry_is_forgotten_together(queue: Queue) -> None:
    partition = queue.partition_of(0)
    some = await delivered(queue, 20)
    (dead,) = await admitted(queue, 1)
    await settle(queue, [(dead, DEAD)])
    _, last, count = await queue.outcomes.read(partition, 0, 1000)
    assert await queue.outcomes.trim(partition, 1000, early=True) == 0, "the archive does not have them"
    await queue.outcomes.commit(partition, 0, last, count)
    assert await queue.outcomes.trim(partition, 1000, early=True) == 21
    assert [await queue.reader.get(each.id) for each in some] == [None] * 20
    assert (await queue.get(dead.id)).state is DEAD
    assert await entries(queue) == 0
    assert (await queue.outcomes.follow(partition, 1, 100)).archived == last


async def test_forgetting_stops_soon_after_its_limit(queue: Queue) -> None:
    partition = queue.partition_of(0)
    for _ in range(40):
        await delivered(queue, 2)
    _, last, count = await queue.outcomes.read(partition, 0, 1000)
    await queue.outcomes.commit(partition, 0, last, count)
    assert await queue.outcomes.trim(partition, 40, early=True) == 64
    assert await queue.outcomes.trim(partition, 40, early=True) == 16


@pytest.mark.parametrize("limit", [1, 5, 30, 200])
async def test_the_newest_are_the_last_of_an_entry(queue: Queue, limit: int) -> None:
    for many in (20, 1, 1, 1, 40, 3):
        await delivered(queue, many)
    newest = await queue.outcomes.newest(queue.partition_of(0), limit)
    assert newest == (await logged(queue))[-limit:][-len(newest) :]
    assert len(newest) >= min(limit, 43)


HEAD = struct.pack(">QI", 1, 2)


@pytest.mark.parametrize(
    "fields",
    [
        ("many", b"", "o", b""),
        ("many", b"xyz", "o", b"{}"),
        ("many", HEAD + b"x", "o", b"[]"),
        ("many", HEAD, "o", b"[]"),
        ("many", HEAD * 2, "o", b"[]"),
        ("many", HEAD),
        ("many", HEAD, "o", b"[]", "more", "of it"),
        ("many", struct.pack(">QI", 2**64 - 1, 2**32 - 1), "o", b"[]"),
        ("many", HEAD * 20_000, "o", b"[]"),
    ],
)
async def test_what_is_no_entry_of_several_is_passed_over(
    queue: Queue, fields: tuple[bytes | str, ...]
) -> None:
    partition = queue.partition_of(0)
    before = await delivered(queue, 2)
    await queue.link.call("XADD", queue.keys.partition(partition).outcomes, "*", *fields)
    after = await delivered(queue, 2)
    found, last, count = await queue.outcomes.read(partition, 0, 1000)
    assert ids(found) == ids(before + after)
    followed = await queue.outcomes.follow(partition, 0, 100_000)
    assert [each.id for each in followed.entries if isinstance(each, Delivery)] == ids(found)
    assert ids(await queue.outcomes.newest(partition, 1000)) == ids(found)
    assert [(await queue.get(each.id)).id for each in found] == ids(found)
    await queue.outcomes.commit(partition, 0, last, count)
    assert await queue.outcomes.trim(partition, 1000, early=True) >= 5
    assert [await queue.reader.get(each.id) for each in found] == [None] * 4


async def test_one_outcome_that_cannot_be_read_hides_no_other_of_its_entry(queue: Queue) -> None:
    partition = queue.partition_of(0)
    some = await delivered(queue, 3)
    log = queue.keys.partition(partition).outcomes
    ((name, (many, heads, o, outcomes)),) = await queue.link.call("XRANGE", log, "-", "+")
    at = struct.unpack_from(">QI", heads)[1]
    broken = outcomes[:at] + b"x" + outcomes[at + 1 :]
    await queue.link.call("DEL", log)
    await queue.link.call("XADD", log, name, many, heads, o, broken)
    found, _, count = await queue.outcomes.read(partition, 0, 1000)
    assert ids(found) == ids([some[0], some[2]])
    assert count == 3


async def test_a_retry_that_is_dead_later_does_not_disturb_what_was_delivered_with_it(queue: Queue) -> None:
    one, other = await admitted(queue, 2)
    await settle(queue, [(one, DELIVERED), (other, RETRY)])
    await queue.pass_time(HOUR_MS)
    await queue.promote()
    (again,) = await queue.admit(1)
    await queue.settle(again, DEAD, Reason.GONE)
    assert [(each.id, each.state) for each in await logged(queue)] == [(one.id, DELIVERED), (other.id, DEAD)]


@pytest.mark.parametrize(
    "together", [(DELIVERED,) * 3, (DELIVERED, DEAD, DELIVERED), (RETRY, DELIVERED, DELIVERED)]
)
async def test_deliveries_of_one_message_that_end_together_need_it_no_more(
    queue: Queue, together: tuple[DeliveryState, ...]
) -> None:
    for number in range(3):
        await queue.enqueue("1", path=f"/{number}/inbox")
    some = await queue.admit(3)
    await settle(queue, list(zip(some, together, strict=True)))
    stats = await queue.conserved()
    left = together.count(RETRY)
    assert stats.origins == ({"me.example": left} if left else {})
    needed = 3 - together.count(DELIVERED)
    assert await queue.references() == ([needed] if needed else [])
