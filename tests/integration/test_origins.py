"""Several instances share a queue, and none can hurt another."""

from __future__ import annotations

from collections import Counter

import pytest
from servers.queue import Queue

from fedsvc.domain.delivery import DeliveryId, DeliveryState
from fedsvc.domain.relations import Relation, Rule
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.dead_letters import Position
from fedsvc.queue.producer import FannedOut
from fedsvc.queue.reader import Reader

A, B = "a.example", "b.example"
ONLY_A, ONLY_B = frozenset({A}), frozenset({B})


async def test_what_one_origin_has_sent_is_no_duplicate_of_anothers(queue: Queue) -> None:
    first = await queue.enqueue("1", origin=B)
    own = await queue.enqueue("1", origin=A)
    assert not own.duplicate
    assert await queue.enqueue("1", origin=A) == (own.id, True)
    assert await queue.enqueue("1", origin=B) == (first.id, True)
    assert await queue.fan_out("1", range(30), origin=A) == FannedOut(29, 1)
    assert await queue.fan_out("1", range(60), origin=B) == FannedOut(59, 1)
    assert await queue.fan_out("1", range(60), origin=A) == FannedOut(30, 30)
    await queue.is_whole(ready=120)
    shown = [(await queue.get(id)).origin for id in (first.id, own.id)]
    assert shown == [B, A]


async def test_origins_may_give_their_calls_the_same_names(queue: Queue) -> None:
    first = await queue.enqueue("1", origin=A, request_id="r")
    second = await queue.enqueue("2", origin=B, request_id="r")
    assert not second.duplicate
    assert await queue.enqueue("1", origin=A, request_id="r") == first
    assert await queue.enqueue("2", origin=B, request_id="r") == second


async def test_an_undo_takes_back_nothing_of_another_origin(queue: Queue) -> None:
    like = "https://me.example/1"
    others = await queue.enqueue("1", origin=B)
    undo = await queue.enqueue("2", kind="Undo", origin=A, relation=Relation(like, "", Rule.UNDONE, like))
    assert (await queue.get(others.id)).state is DeliveryState.READY
    assert (await queue.get(undo.id)).state is DeliveryState.READY
    own = await queue.enqueue("1", origin=A)
    await queue.enqueue("3", kind="Undo", origin=A, relation=Relation(like, "", Rule.UNDONE, like))
    assert (await queue.get(own.id)).state is DeliveryState.SUPERSEDED
    assert (await queue.get(others.id)).state is DeliveryState.READY
    await queue.conserved()


@pytest.fixture
def canceller(queue: Queue) -> Canceller:
    return Canceller(queue.link, queue.keys, queue.settings)


async def test_who_has_rights_to_one_origin_sees_nothing_of_others(queue: Queue) -> None:
    reader, activity = queue.reader, "https://me.example/1"
    await queue.fan_out("1", range(20), origin=A)
    await queue.fan_out("1", range(30), origin=B)
    for origins, expected in ((ONLY_A, 20), (ONLY_B, 30), (None, 50), (frozenset[str](), 0)):
        listed = await reader.list_activity(
            activity, after=None, limit=100, states=frozenset(), origins=origins
        )
        assert len(listed) == expected
        assert all(origins is None or d.origin in origins for d in listed)
        assert await reader.count_activity(activity, origins) == (
            expected,
            Counter({DeliveryState.READY: expected} if expected else {}),
        )
    (some,) = await reader.list_activity(activity, after=None, limit=1, states=frozenset(), origins=ONLY_A)
    assert await reader.get(some.id, ONLY_A) == some
    assert await reader.get(some.id, ONLY_B) is None
    assert await reader.body(some.id, ONLY_A)
    assert await reader.body(some.id, ONLY_B) is None


async def test_what_has_ended_is_shown_to_its_origin_only(queue: Queue) -> None:
    (mine, theirs) = [await queue.enqueue("1", origin=origin) for origin in (A, B)]
    for admitted in await queue.admit(10):
        await queue.settle(admitted, DeliveryState.DELIVERED)
    assert (await queue.get(mine.id)).origin == A
    assert await queue.reader.get(mine.id, ONLY_B) is None
    shown = await queue.reader.get(theirs.id, ONLY_B)
    assert shown is not None
    assert shown.state is DeliveryState.DELIVERED


async def test_dead_letters_of_one_origin_are_found_among_those_of_others(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reader, "CHUNK", 3)
    for number in range(20):
        await queue.enqueue(str(number), inbox=number % 3, origin=A if number % 10 == 0 else B)
    for admitted in await queue.admit_everywhere():
        await queue.settle(admitted, DeliveryState.DEAD)
    letters = (await queue.dead.page(limit=10, origins=ONLY_A)).letters
    assert {d.activity_id for d in letters} == {"https://me.example/0", "https://me.example/10"}
    assert [d.outcome for d in letters] == sorted((d.outcome for d in letters), reverse=True)
    (older,) = (
        await queue.dead.page(
            after=Position(letters[0].outcome, letters[0].id.partition), limit=10, origins=ONLY_A
        )
    ).letters
    assert older == letters[1]
    assert len((await queue.dead.page(limit=15, origins=ONLY_B)).letters) == 15
    assert len((await queue.dead.page(limit=100)).letters) == 20


async def test_cancelling_ends_nothing_of_another_origin(queue: Queue, canceller: Canceller) -> None:
    mine = await queue.enqueue("1", origin=A)
    theirs = await queue.enqueue("1", origin=B)
    await queue.fan_out("2", range(10), origin=A)
    await queue.fan_out("2", range(20), origin=B)
    # as if it were not there: what nobody knows counts as ended
    nobodys = DeliveryId(theirs.id.partition, 1)
    assert await canceller.cancel([theirs.id], origins=ONLY_A) == (0, 0, 1)
    assert await canceller.cancel([nobodys], origins=ONLY_A) == (0, 0, 1)
    assert await canceller.cancel([mine.id, theirs.id], origins=ONLY_A) == (1, 0, 1)
    assert await canceller.cancel_activity("https://me.example/2", origins=ONLY_A) == (10, 0, 0)
    assert await canceller.cancel_activity("https://me.example/2", origins=frozenset()) == (0, 0, 0)
    await queue.is_whole(ready=21, cancelled=11)
    assert await canceller.cancel_activity("https://me.example/2", origins=ONLY_B) == (20, 0, 0)
    assert await canceller.cancel([mine.id, theirs.id], origins=None) == (1, 0, 1)
    await queue.is_whole(cancelled=32)


async def test_to_a_host_too_only_an_origins_own_are_cancelled(queue: Queue, canceller: Canceller) -> None:
    for number in range(5):
        await queue.enqueue(f"a{number}", origin=A)
    for admitted in (await queue.admit(10))[:2]:
        await queue.settle(admitted, DeliveryState.DEAD)
    for number in range(7):
        await queue.enqueue(f"b{number}", origin=B)
    assert await canceller.cancel_host("h0.example", origins=ONLY_B) == (7, 0, 0)
    assert await canceller.cancel_host("h0.example", origins=ONLY_A) == (0, 3, 2)
    await queue.is_whole(in_flight=3, dead=2, cancelled=7)


async def test_a_key_of_an_order_belongs_to_an_origin(queue: Queue, canceller: Canceller) -> None:
    for origin in (A, B):
        await queue.enqueue(origin, origin=origin, relation=Relation("key"))
    assert await canceller.cancel_ordered("key", origins=frozenset()) == (0, 0, 0)
    assert await canceller.cancel_ordered("key", origins=ONLY_B) == (1, 0, 0)
    assert await canceller.cancel_ordered("key") == (1, 0, 1)
    await queue.is_whole(cancelled=2)


async def pending(queue: Queue) -> dict[str, int]:
    stats = await queue.conserved()
    assert sum(stats.origins.values()) == stats.pending
    return dict(stats.origins)


async def test_what_each_origin_has_pending_is_known_at_every_step(
    queue: Queue, canceller: Canceller
) -> None:
    await queue.fan_out("1", range(40), origin=A)
    for number in range(5):
        await queue.enqueue(f"b{number}", origin=B)
    await queue.enqueue("later", origin=B, not_before_ms=await queue.now_ms() + 60_000)
    assert await pending(queue) == {A: 40, B: 6}
    first, second, third, *rest = await queue.admit(5)
    await queue.settle(first, DeliveryState.DELIVERED)
    await queue.settle(second, DeliveryState.RETRY, wait_ms=1000)
    await queue.settle(third, DeliveryState.DEAD)
    assert await pending(queue) == {A: 40, B: 4}, "a dead letter is not pending"
    await queue.settle(third, DeliveryState.DEAD)
    await queue.settle(rest[0], DeliveryState.EXPIRED)
    assert await pending(queue) == {A: 40, B: 3}
    await canceller.cancel_activity("https://me.example/1")
    assert await pending(queue) == {B: 3}, "who has nothing is forgotten"
    await queue.pass_time(60_001)
    await queue.promote()
    await queue.settle(rest[1], DeliveryState.DELIVERED)
    for admitted in await queue.admit(5):
        await queue.settle(admitted, DeliveryState.DELIVERED)
    assert await pending(queue) == {}
    # a dead letter that goes for good was not pending either
    await queue.pass_time(1000 * 86_400_000)
    assert await queue.outcomes.bury(queue.partition_of(0), 10) == 1
    assert await pending(queue) == {}


async def test_what_is_taken_back_is_pending_no_more(queue: Queue) -> None:
    like = "https://me.example/1"
    undo = Relation(like, "", Rule.UNDONE, like)
    await queue.enqueue("1", origin=A)
    await queue.enqueue("2", kind="Undo", origin=A, relation=undo)
    assert await pending(queue) == {}
    for name in ("3", "4"):
        await queue.enqueue(name, origin=A, relation=Relation("", "state", Rule.SAME_KEY))
    await queue.enqueue("5", origin=A, expire_ms=await queue.now_ms() + 60_000)
    assert await pending(queue) == {A: 2}
    await queue.pass_time(61_000)
    await queue.promote()
    assert await pending(queue) == {A: 1}


async def test_an_audit_finds_a_backlog_that_is_off(queue: Queue) -> None:
    partition = queue.partition_of(0)
    key = f"{queue.keys.partition(partition).prefix}:backlog"
    await queue.enqueue("1", origin=A)
    await queue.link.call("HINCRBY", key, B, 7)
    assert (await queue.hosts.audit(partition)).backlog_off == 7
    (admitted,) = await queue.admit(1)
    await queue.settle(admitted, DeliveryState.DELIVERED)
    assert (await queue.hosts.audit(partition)).backlog_off == 7
    assert (await queue.hosts.audit(partition)).backlog_off == 0, "when nothing is pending it is set right"
