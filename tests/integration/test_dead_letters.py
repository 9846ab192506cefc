"""Dead letters in Redis: pages that stay right while much changes, and what replay and purge do to one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from servers.queue import PARTITIONS, Queue, open_queue
from servers.valkey import ValkeyServer

from fedsvc.domain.dead_letters import DeadLetterFilter
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.domain.relations import Relation
from fedsvc.queue.dead_letters import DeadLetters, Position
from fedsvc.queue.producer import Terms

DAY_MS = 86_400_000


async def dies(
    queue: Queue, activity: str, inbox: int = 0, reason: Reason = Reason.GONE, **terms: Any
) -> Delivery:
    queued = await queue.enqueue(activity, inbox=inbox, **terms)
    (admitted,) = [a for a in await queue.admit_everywhere() if a.id == queued.id]
    await queue.settle(admitted, DeliveryState.DEAD, reason)
    return await queue.get(queued.id)


async def pages(queue: Queue, limit: int, chosen: DeadLetterFilter | None = None) -> list[DeliveryId]:
    """Of all, one after the other."""
    found: list[DeliveryId] = []
    at: Position | None = None
    for _ in range(100):
        page = await queue.dead.page(after=at, limit=limit, chosen=chosen or DeadLetterFilter())
        assert len(page.letters) <= limit
        found += [letter.id for letter in page.letters]
        at = page.next
        if at is None:
            return found
    raise AssertionError("there is no end to it")


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_pages_hold_each_once_newest_first(queue: Queue, limit: int) -> None:
    letters = [await dies(queue, f"{n}", n % 5) for n in range(12)]
    newest = sorted(letters, key=lambda d: (d.outcome, d.id.partition), reverse=True)
    assert await pages(queue, limit) == [letter.id for letter in newest]


async def test_what_dies_or_goes_between_two_pages_neither_hides_nor_repeats_another(queue: Queue) -> None:
    letters = [await dies(queue, f"{n}", n % 5) for n in range(10)]
    first = await queue.dead.page(limit=4)
    new = await dies(queue, "new", 1)
    last_of_first, next_one = first.letters[-1], letters[5]
    for gone in (last_of_first, next_one):
        assert await queue.dead.move("purge", [gone]) == 1
    rest: list[DeliveryId] = []
    at = first.next
    while at is not None:
        page = await queue.dead.page(after=at, limit=4)
        rest += [letter.id for letter in page.letters]
        at = page.next
    expected = {d.id for d in letters} - {d.id for d in first.letters} - {next_one.id}
    assert (set(rest), len(rest)) == (expected, len(expected))
    assert new.id not in rest


async def test_a_page_says_where_it_is_when_it_has_looked_at_enough(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeadLetters, "MOST_LOOKED_AT", 3)
    monkeypatch.setattr(DeadLetters, "CHUNK", 2)
    wanted = await dies(queue, "old", 1, Reason.NOT_FOUND)
    for n in range(8):
        await dies(queue, f"{n}", 2)
    chosen = DeadLetterFilter(reason=Reason.NOT_FOUND)
    page = await queue.dead.page(limit=10, chosen=chosen)
    assert page.letters == []
    assert page.next is not None
    assert await pages(queue, 10, chosen) == [wanted.id]


async def test_of_one_host_no_other_part_of_the_queue_is_looked_at(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = next(n for n in range(2, 50) if queue.partition_of(n) != queue.partition_of(1))
    neighbour = next(n for n in range(2, 50) if queue.partition_of(n) == queue.partition_of(1))
    wanted = [await dies(queue, f"w{n}", 1) for n in range(3)]
    for n in range(5):
        await dies(queue, f"o{n}", other)
    await dies(queue, "n", neighbour)
    monkeypatch.setattr(DeadLetters, "MOST_LOOKED_AT", 5)
    monkeypatch.setattr(DeadLetters, "CHUNK_OF_ONE", 2)
    chosen = DeadLetterFilter(host="h1.example")
    page = await queue.dead.page(limit=10, chosen=chosen)
    assert ([letter.id for letter in page.letters], page.next) == ([w.id for w in wanted[::-1]], None)
    assert await pages(queue, 2, chosen) == [w.id for w in wanted[::-1]]
    bounds = await queue.dead.bounds()
    batches = [
        await queue.dead.batch(p, after=0, until=bounds[p], limit=10, chosen=chosen)
        for p in range(PARTITIONS)
    ]
    assert [len(batch.letters) for batch in batches if batch.last is not None] == [3]


async def test_each_field_of_a_filter_chooses(queue: Queue) -> None:
    one = await dies(queue, "1", 1, Reason.GONE)
    two = await dies(queue, "2", 2, Reason.NOT_FOUND)
    between = two.outcome // 1000
    for fields, expected in (
        ({}, [two, one]),
        ({"host": "h1.example"}, [one]),
        ({"host": "h"}, []),
        ({"activity_type": "Like"}, [two, one]),
        ({"activity_type": "Create"}, []),
        ({"actor": "https://me.example/u/a"}, [two, one]),
        ({"actor": "https://me.example/u/b"}, []),
        ({"reason": Reason.NOT_FOUND}, [two]),
        ({"status": 200}, [two, one]),
        ({"status": 404}, []),
        ({"start_ms": between}, [d for d in (two, one) if d.outcome // 1000 >= between]),
        ({"end_ms": between}, [d for d in (two, one) if d.outcome // 1000 < between]),
        ({"end_ms": between + 1}, [two, one]),
        ({"start_ms": between + 1}, []),
        ({"host": "h1.example", "reason": Reason.NOT_FOUND}, []),
    ):
        chosen = DeadLetterFilter(**fields)
        assert await pages(queue, 1, chosen) == [letter.id for letter in expected], fields
        assert DeadLetterFilter.from_json(chosen.as_json()) == chosen


async def test_a_reason_chooses_by_the_last_attempt_too(queue: Queue) -> None:
    """What answered 503 until its retries were used up is found by either."""
    letter = await dies(queue, "1", 1, Reason.UNAVAILABLE)
    letter = replace(letter, reason=Reason.RETRIES_EXHAUSTED)
    assert [letter.history[-1].reason, letter.reason] == [Reason.UNAVAILABLE, Reason.RETRIES_EXHAUSTED]
    for reason in Reason:
        fits = reason in (Reason.UNAVAILABLE, Reason.RETRIES_EXHAUSTED)
        assert DeadLetterFilter(reason=reason).takes(letter) == fits, reason
    assert DeadLetterFilter(reason=Reason.GONE).takes(replace(letter, reason=Reason.GONE, history=()))


async def test_a_replayed_delivery_has_all_attempts_and_all_the_time_again(queue: Queue) -> None:
    letter = await dies(queue, "1", reason=Reason.SERVER_ERROR)
    await queue.pass_time(DAY_MS)
    assert await queue.dead.move("replay", [letter]) == 1
    await queue.is_whole(ready=1)
    now_ms = await queue.now_ms()
    shown = await queue.get(letter.id)
    assert (shown.state, shown.history) == (DeliveryState.READY, letter.history)
    (admitted,) = await queue.admit(1)
    assert admitted.record.tries == 0
    lifetime_ms = queue.settings.max_retry_duration * 1000
    assert abs(admitted.record.deadline_s * 1000 - now_ms - lifetime_ms) < 2000
    assert await queue.reader.body(letter.id) == b'{"id":"https://me.example/1"}'
    await queue.deliver(admitted)
    await queue.is_whole(delivered=1)
    assert await queue.references() == []


async def test_what_is_no_dead_letter_any_more_is_passed_over(queue: Queue) -> None:
    first, second = await dies(queue, "1"), await dies(queue, "2")
    assert await queue.dead.move("replay", [first, second], "o") == 2
    assert await queue.dead.move("replay", [first, second], "o") == 0
    assert await queue.dead.move("purge", [first, second], "o") == 0
    (admitted, _) = sorted(await queue.admit(2), key=lambda a: a.id)
    await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE)
    # It is dead again, and these are words of its first death.
    assert await queue.dead.move("replay", [first], "o") == 0
    assert await queue.dead.moved("o") == 2
    await queue.is_whole(dead=1, in_flight=1)


async def test_too_late_nothing_is_done(queue: Queue) -> None:
    letter = await dies(queue, "1")
    seconds, _ = await queue.link.call("TIME")
    assert await queue.dead.move("purge", [letter], "o", not_after_ms=int(seconds) * 1000 - 1) is None
    await queue.is_whole(dead=1)
    assert await queue.dead.move("purge", [letter], "o", not_after_ms=int(seconds) * 1000 + 60_000) == 1


async def test_a_purged_delivery_is_an_outcome_and_its_body_goes(queue: Queue) -> None:
    letter = await dies(queue, "1")
    assert await queue.dead.move("purge", [letter]) == 1
    await queue.is_whole(purged=1)
    shown = await queue.get(letter.id)
    assert (shown.state, shown.history) == (DeliveryState.PURGED, letter.history)
    assert await queue.references() == []
    partition = letter.id.partition
    outcomes, _, _ = await queue.outcomes.read(partition, 0, 10)
    assert [d.state for d in outcomes] == [DeliveryState.DEAD, DeliveryState.PURGED]


async def test_a_replay_waits_for_those_of_its_order(queue: Queue) -> None:
    relation = Relation(ordering_key="k")
    letter = await dies(queue, "1", relation=relation)
    follower = await queue.enqueue("2", relation=relation)
    assert await queue.dead.move("replay", [letter]) == 1
    (admitted,) = await queue.admit(10)
    assert admitted.id == follower.id, "the replayed one comes last"
    await queue.deliver(admitted)
    await queue.promote()
    (admitted,) = await queue.admit(10)
    assert admitted.id == letter.id


async def test_what_is_replayed_together_keeps_its_order(queue: Queue) -> None:
    relation = Relation(ordering_key="k")
    letters = [
        await dies(queue, name, path=path, relation=relation)
        for name, path in (("1", "/a"), ("1", "/b"), ("2", "/a"), ("1", "/c"))
    ]
    assert await queue.dead.move("replay", letters) == 4
    first, second, third, fourth = (letter.id for letter in letters)
    for expected in ([first, second], [third], [fourth]):
        taken = await queue.admit(10)
        assert [admitted.id for admitted in taken] == expected
        for admitted in taken:
            await queue.deliver(admitted)


async def test_what_died_of_a_fan_out_to_thousands_of_inboxes_of_one_host_is_replayed_at_once(
    queue: Queue,
) -> None:
    """Within the time in which Redis must answer: whether they must wait is looked for once."""
    places = [queue.place(0, f"/u/{n}") for n in range(2000)]
    terms = Terms(Priority.URGENT, relation=Relation("https://me.example/note"))
    await queue.producer.fan_out(queue.message("a"), places, terms)
    while taken := await queue.admit(500):
        ended = [await queue.settlement(admitted, DeliveryState.DEAD, Reason.GONE) for admitted in taken]
        await queue.consumer("a").settle(queue.partition_of(0), ended)
    letters = (await queue.dead.page(limit=2000)).letters
    assert await queue.dead.move("replay", letters) == 2000
    stats = await queue.conserved()
    assert (stats.ready, stats.parked) == (2000, 0)


async def test_a_caller_s_expiry_that_is_over_does_not_end_a_replay(queue: Queue) -> None:
    now_ms = await queue.now_ms()
    letter = await dies(queue, "1", expire_ms=now_ms + 60_000)
    other = await dies(queue, "2", expire_ms=now_ms + DAY_MS)
    await queue.pass_time(120_000)
    assert await queue.dead.move("replay", [letter, other]) == 2
    await queue.promote()
    await queue.is_whole(ready=2)
    await queue.pass_time(DAY_MS)
    await queue.promote()
    await queue.is_whole(ready=1, expired=1)


async def test_what_got_too_old_behind_others_is_handed_out_once_also_if_it_would_have_expired_later(
    queue: Queue,
) -> None:
    now_ms = await queue.now_ms()
    first = await queue.enqueue("1", relation=Relation("k"), not_before_ms=now_ms + DAY_MS)
    second = await queue.enqueue("2", relation=Relation("k"), expire_ms=now_ms + 10 * DAY_MS)
    await queue.pass_time(queue.settings.max_retry_duration * 1000 + 5000)
    await queue.promote()
    await queue.dead.move("replay", (await queue.dead.page(limit=10)).letters)
    handed = []
    for _ in range(2):
        for admitted in await queue.admit(10):
            handed.append(admitted.id)
            await queue.deliver(admitted)
    assert handed == [first.id, second.id]
    await queue.is_whole(delivered=2)


async def test_origins_take_turns_also_with_what_is_replayed(valkey: ValkeyServer, namespace: str) -> None:
    async with open_queue(valkey.url, namespace, FEDSVC_READY_WINDOW="1") as queue:
        letters = [await dies(queue, f"{n}", priority=Priority.NORMAL) for n in range(20)]
        for n in range(2):
            await queue.enqueue(f"other-{n}", origin="other.example", priority=Priority.NORMAL)
        assert await queue.dead.move("replay", letters) == 20
        stats = await queue.conserved()
        assert (stats.ready, stats.origins) == (22, {"me.example": 20, "other.example": 2})
        seen = 0
        for _ in range(60):
            for admitted in await queue.admit(2):
                await queue.deliver(admitted)
                seen += 1
            await queue.promote()
        assert seen == 22


async def test_only_dead_letters_are_found_by_id(queue: Queue) -> None:
    letter, ready = await dies(queue, "1"), await queue.enqueue("2")
    wanted = [letter.id, ready.id, DeliveryId(0, 1), DeliveryId(PARTITIONS + 3, 1)]
    assert await queue.dead.find(wanted) == [letter]


async def test_bounds_and_batches(queue: Queue) -> None:
    letters = [await dies(queue, f"{n}") for n in range(5)]
    bounds = await queue.dead.bounds()
    partition = letters[0].id.partition
    assert [b for p, b in enumerate(bounds) if p != partition] == [0] * (PARTITIONS - 1)
    await dies(queue, "later")
    found: list[DeliveryId] = []
    after: int | None = 0
    while after is not None:
        batch = await queue.dead.batch(
            partition, after=after, until=bounds[partition], limit=2, chosen=DeadLetterFilter()
        )
        found += [letter.id for letter in batch.letters]
        after = batch.last
    assert found == [letter.id for letter in letters]
