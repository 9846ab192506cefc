"""What was not sent yet is taken back, as something newer makes it pointless or somebody cancels it."""

from __future__ import annotations

import pytest
from servers.queue import CREATE, DELETE, OBJECT, ORDERED, SECOND_MS, UPDATE, Queue, ids, open_queue
from servers.valkey import ValkeyServer

from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.domain.relations import Relation, Rule
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.consumer import Signal
from fedsvc.queue.producer import Queued, Terms

LIKED = "https://me.example/like"
LIKE = Relation(LIKED)
UNDO = Relation(LIKED, "", Rule.UNDONE, LIKED)


@pytest.fixture
def canceller(queue: Queue) -> Canceller:
    return Canceller(queue.link, queue.keys, queue.settings)


async def ended(queue: Queue, id: DeliveryId) -> tuple[DeliveryState, Reason | None]:
    delivery = await queue.get(id)
    return delivery.state, delivery.reason


async def test_a_newer_update_replaces_one_that_was_not_sent(queue: Queue) -> None:
    await queue.enqueue("create", kind="Create", relation=CREATE)
    old = await queue.enqueue("u1", kind="Update", relation=UPDATE)
    new = await queue.enqueue("u2", kind="Update", relation=UPDATE)
    assert await ended(queue, old.id) == (DeliveryState.SUPERSEDED, Reason.SUPERSEDED)
    (create,) = await queue.admit(100)
    await queue.settle(create, DeliveryState.DELIVERED)
    assert ids(await queue.admit(100)) == [new.id]
    stats = await queue.conserved()
    assert stats.counter("superseded") == 1


async def test_an_update_in_flight_is_not_tried_again_once_there_is_a_newer(queue: Queue) -> None:
    old = await queue.enqueue("u1", kind="Update", relation=UPDATE)
    (admitted,) = await queue.admit(100)
    new = await queue.enqueue("u2", kind="Update", relation=UPDATE)
    await queue.fail(admitted)
    assert (await queue.get(old.id)).state is DeliveryState.SUPERSEDED
    assert (await queue.get(old.id)).attempts == 1
    assert ids(await queue.admit(100)) == [new.id]
    await queue.conserved()


async def test_a_delete_removes_what_was_not_sent_and_goes_out_itself(queue: Queue) -> None:
    create = await queue.enqueue("c", kind="Create", relation=CREATE)
    update = await queue.enqueue("u", kind="Update", relation=UPDATE)
    elsewhere = await queue.enqueue("c", kind="Create", path="/other", relation=CREATE)
    delete = await queue.enqueue("d", kind="Delete", relation=DELETE)
    for id in (create.id, update.id):
        assert (await queue.get(id)).state is DeliveryState.SUPERSEDED
    assert (await queue.get(elsewhere.id)).state is DeliveryState.READY
    taken = await queue.admit(100)
    assert ids(taken) == [elsewhere.id]
    await queue.settle(taken[0], DeliveryState.DELIVERED)
    assert ids(await queue.admit(100)) == [delete.id]
    await queue.conserved()


async def test_a_delete_takes_back_what_was_not_sent_though_another_inbox_of_the_host_has_it(
    queue: Queue,
) -> None:
    create = await queue.enqueue("c", kind="Create", path="/a", relation=CREATE)
    (flying,) = await queue.admit(100)
    await queue.fail(flying)
    await queue.enqueue("c", kind="Create", path="/b", relation=CREATE)
    (other,) = await queue.admit(100)
    await queue.deliver(other)
    delete = await queue.enqueue("d", kind="Delete", path="/a", relation=DELETE)
    assert (await queue.get(create.id)).state is DeliveryState.SUPERSEDED
    assert ids(await queue.admit(100)) == [delete.id]


async def test_a_fan_out_to_thousands_of_inboxes_of_one_host_does_not_hold_redis_up(queue: Queue) -> None:
    """Each call within the time in which Redis must answer; what all inboxes share is looked for once."""
    places = [queue.place(0, f"/u/{n}") for n in range(2000)]
    for name, relation in (("c", CREATE), ("u", UPDATE), ("d", DELETE)):
        kind = {"c": "Create", "u": "Update", "d": "Delete"}[name]
        terms = Terms(Priority.BULK, relation=relation)
        assert (await queue.producer.fan_out(queue.message(name, kind), places, terms)).accepted == 2000
    stats = await queue.conserved()
    assert (stats.counter("superseded"), stats.pending) == (4000, 2000)


async def liked(queue: Queue) -> Queued:
    return await queue.enqueue("like", relation=LIKE)


async def undo(queue: Queue) -> Queued:
    return await queue.enqueue("undo", kind="Undo", relation=UNDO)


async def test_an_undo_takes_back_what_nobody_has_heard_of_and_is_not_sent_itself(queue: Queue) -> None:
    like = await liked(queue)
    taken_back = await undo(queue)
    for id in (like.id, taken_back.id):
        assert await ended(queue, id) == (DeliveryState.SUPERSEDED, Reason.SUPERSEDED)
    assert await queue.admit(100) == []
    stats = await queue.conserved()
    assert (stats.counter("accepted"), stats.counter("superseded"), stats.pending) == (2, 2, 0)
    recorded, _, _ = await queue.outcomes.read(queue.partition_of(0), 0, 10)
    assert [d.id for d in recorded] == [like.id, taken_back.id]


async def test_an_undo_of_what_was_tried_is_sent_and_the_rest_of_its_tries_are_not(queue: Queue) -> None:
    like = await liked(queue)
    (admitted,) = await queue.admit(100)
    await queue.fail(admitted)
    undone = await undo(queue)
    assert (await queue.get(like.id)).state is DeliveryState.SUPERSEDED
    assert ids(await queue.admit(100)) == [undone.id]
    await queue.conserved()


async def test_an_undo_waits_for_what_is_on_its_way(queue: Queue) -> None:
    await liked(queue)
    (admitted,) = await queue.admit(100)
    undone = await undo(queue)
    assert await queue.admit(100) == []
    await queue.deliver(admitted)
    assert ids(await queue.admit(100)) == [undone.id]


async def test_an_undo_goes_where_the_activity_went_and_only_there_it_is_taken_back(queue: Queue) -> None:
    await liked(queue)
    elsewhere = await queue.enqueue("undo", kind="Undo", inbox=1, relation=UNDO)
    assert elsewhere.id in ids(await queue.admit_everywhere())


async def test_an_undo_takes_back_all_that_was_sent_to_the_inbox_under_the_same_id(queue: Queue) -> None:
    likes = [await queue.enqueue("like", relation=LIKE, allow_duplicate=True) for _ in range(3)]
    undone = await undo(queue)
    assert {(await queue.get(q.id)).state for q in (*likes, undone)} == {DeliveryState.SUPERSEDED}
    assert await queue.admit(100) == []


async def test_an_undo_is_sent_if_its_inbox_has_had_the_activity_once(queue: Queue) -> None:
    await liked(queue)
    (admitted,) = await queue.admit(100)
    await queue.deliver(admitted)
    again = await queue.enqueue("like", relation=LIKE, allow_duplicate=True)
    undone = await undo(queue)
    assert (await queue.get(again.id)).state is DeliveryState.SUPERSEDED
    assert ids(await queue.admit(100)) == [undone.id]


@pytest.mark.parametrize("held", [False, True])
async def test_what_is_for_later_takes_nothing_back_that_goes_before(queue: Queue, held: bool) -> None:
    now_ms = await queue.now_ms()
    soon, later = now_ms + 10 * SECOND_MS, now_ms + 1000 * SECOND_MS
    if held:
        await queue.enqueue("first", relation=Relation(OBJECT))
    sent = [await queue.enqueue("create", kind="Create", relation=CREATE)]
    sent.append(await queue.enqueue("update", kind="Update", relation=UPDATE, not_before_ms=soon))
    await queue.enqueue("never", kind="Update", relation=UPDATE, not_before_ms=later + 1)
    sent.append(await queue.enqueue("delete", kind="Delete", relation=DELETE, not_before_ms=later))
    got = []
    for _ in range(3 + held):
        for admitted in await queue.admit(100):
            got.append(admitted.id)
            await queue.deliver(admitted)
        await queue.pass_time(400 * SECOND_MS)
        await queue.promote()
    for admitted in await queue.admit(100):
        got.append(admitted.id)
        await queue.deliver(admitted)
    assert got[held:] == [q.id for q in sent]
    await queue.is_whole(delivered=3 + held, superseded=1)


async def test_what_is_in_flight_is_tried_again_if_what_ends_it_is_for_later(queue: Queue) -> None:
    later = await queue.now_ms() + 1000 * SECOND_MS
    await queue.enqueue("create", kind="Create", relation=CREATE)
    (admitted,) = await queue.admit(100)
    await queue.enqueue("delete", kind="Delete", relation=DELETE, not_before_ms=later)
    await queue.fail(admitted)
    assert (await queue.get(admitted.id)).state is DeliveryState.RETRY


async def test_an_undo_for_later_leaves_what_is_sent_until_then(queue: Queue) -> None:
    later = await queue.now_ms() + 10 * SECOND_MS
    like = await liked(queue)
    undone = await queue.enqueue("undo", kind="Undo", relation=UNDO, not_before_ms=later)
    (admitted,) = await queue.admit(100)
    assert admitted.id == like.id
    await queue.deliver(admitted)
    await queue.pass_time(11 * SECOND_MS)
    await queue.promote()
    assert ids(await queue.admit(100)) == [undone.id]


async def test_a_supersede_key_of_the_caller_replaces_whatever_has_it(queue: Queue) -> None:
    same = Relation("", "state", Rule.SAME_KEY)
    old = await queue.enqueue("1", relation=same)
    unrelated = await queue.enqueue("2", relation=Relation("", "another", Rule.SAME_KEY))
    other_inbox = await queue.enqueue("3", path="/other", relation=same)
    new = await queue.enqueue("4", relation=same)
    assert (await queue.get(old.id)).state is DeliveryState.SUPERSEDED
    assert set(ids(await queue.admit(100))) == {unrelated.id, other_inbox.id, new.id}


async def test_what_was_delivered_is_not_superseded(queue: Queue) -> None:
    first = await queue.enqueue("c", kind="Create", relation=CREATE)
    (admitted,) = await queue.admit(100)
    await queue.deliver(admitted)
    await queue.enqueue("d", kind="Delete", relation=DELETE)
    assert (await queue.get(first.id)).state is DeliveryState.DELIVERED
    assert len(await queue.admit(100)) == 1


async def test_a_scheduled_or_retried_delivery_is_superseded_too(queue: Queue) -> None:
    later = await queue.now_ms() + 100 * SECOND_MS
    old = await queue.enqueue("u1", kind="Update", relation=UPDATE, not_before_ms=later)
    new = await queue.enqueue("u2", kind="Update", relation=UPDATE)
    assert (await queue.get(old.id)).state is DeliveryState.SUPERSEDED
    (admitted,) = await queue.admit(100)
    await queue.fail(admitted)
    await queue.enqueue("u3", kind="Update", relation=UPDATE)
    assert (await queue.get(new.id)).state is DeliveryState.SUPERSEDED
    stats = await queue.conserved()
    assert (stats.retry, stats.scheduled) == (0, 0)


async def in_every_state(queue: Queue) -> dict[str, Delivery]:
    """One delivery to host 0 in each state, by its name."""
    await queue.enqueue("retry")
    (admitted,) = await queue.admit(1)
    await queue.fail(admitted)
    await queue.enqueue("flying")
    await queue.admit(1)
    await queue.enqueue("done")
    (admitted,) = await queue.admit(1)
    await queue.deliver(admitted)
    await queue.enqueue("held0", relation=ORDERED)
    await queue.enqueue("held", relation=ORDERED)
    await queue.enqueue("scheduled", not_before_ms=await queue.now_ms() + SECOND_MS * 1000)
    await queue.enqueue("ready")
    found = {}
    for name in ("retry", "flying", "done", "held0", "held", "scheduled", "ready"):
        (delivery,) = await queue.reader.list_activity(
            f"https://me.example/{name}", after=None, limit=10, states=frozenset()
        )
        found[name] = delivery
    return found


async def test_everything_to_a_host_is_cancelled(queue: Queue, canceller: Canceller) -> None:
    await in_every_state(queue)
    elsewhere = await queue.enqueue("other", inbox=1)
    assert await canceller.cancel_host("h0.example") == (5, 1, 1)
    stats = await queue.conserved()
    assert (stats.counter("cancelled"), stats.pending) == (5, 2)
    assert ids(await queue.admit_everywhere()) == [elsewhere.id]


async def test_however_many_a_host_has_all_are_cancelled(
    queue: Queue, canceller: Canceller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Canceller, "CHUNK", 7)
    long = "x" * 64  # so that Redis tells of them page by page
    places = [queue.place(0, f"/{long}/{n}") for n in range(100)]
    await queue.producer.fan_out(queue.message("1"), places, Terms(Priority.BULK))
    assert await canceller.cancel_host("h0.example") == (100, 0, 0)
    assert (await queue.conserved()).pending == 0


async def test_deliveries_are_cancelled_by_id_and_only_once(queue: Queue, canceller: Canceller) -> None:
    states = await in_every_state(queue)
    chosen = [d.id for d in states.values()]
    assert await canceller.cancel(chosen) == (5, 1, 1)
    assert await canceller.cancel(chosen) == (0, 1, 6)
    for name in ("retry", "held0", "held", "scheduled", "ready"):
        assert await ended(queue, states[name].id) == (DeliveryState.CANCELLED, Reason.CANCELLED)
    await queue.conserved()


async def test_what_is_cancelled_in_flight_is_not_tried_again(queue: Queue, canceller: Canceller) -> None:
    queued = await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    assert await canceller.cancel([queued.id]) == (0, 1, 0)
    await queue.fail(admitted)
    assert await ended(queue, queued.id) == (DeliveryState.CANCELLED, Reason.CANCELLED)
    await queue.conserved()


async def test_a_cancelled_delivery_lets_others_go_in_their_order(queue: Queue, canceller: Canceller) -> None:
    first, second, third = [await queue.enqueue(str(n), relation=ORDERED) for n in range(3)]
    await canceller.cancel([second.id])
    (admitted,) = await queue.admit(100)
    assert admitted.id == first.id
    await queue.settle(admitted, DeliveryState.DELIVERED)
    assert ids(await queue.admit(100)) == [third.id]
    fourth = await queue.enqueue("4", relation=ORDERED)
    assert (await queue.get(fourth.id)).state is DeliveryState.PARKED


async def test_all_of_an_activity_or_a_key_is_cancelled(queue: Queue, canceller: Canceller) -> None:
    await queue.fan_out("1", range(20))
    await queue.fan_out("2", range(10), relation=ORDERED)
    assert await canceller.cancel_activity("https://me.example/1") == (20, 0, 0)
    assert await canceller.cancel_ordered("key", origins=frozenset({"other.example"})) == (0, 0, 0)
    assert await canceller.cancel_ordered("key") == (10, 0, 0)
    assert (await queue.conserved()).pending == 0


async def test_what_was_cancelled_in_a_lane_is_passed_over(
    valkey: ValkeyServer, namespace: str, rsa_pem: bytes
) -> None:
    limits = {"FEDSVC_HOST_CONCURRENCY": "1"}
    async with open_queue(valkey.url, namespace, **limits) as queue:
        canceller = Canceller(queue.link, queue.keys, queue.settings)
        sent = [await queue.enqueue(str(n)) for n in range(5)]
        (admitted,) = await queue.admit(100)
        assert await canceller.cancel([sent[1].id, sent[2].id]) == (2, 0, 0)
        await queue.settle(admitted, DeliveryState.DELIVERED, signal=Signal.ANSWERED)
        assert ids(await queue.admit(100)) == [sent[3].id]
        stats = await queue.conserved()
        assert (stats.parked, stats.in_flight) == (1, 1)


async def test_what_keeps_another_order_is_replaced_all_the_same(queue: Queue) -> None:
    create = await queue.enqueue("c", kind="Create", relation=Relation("mine", OBJECT))
    delete = await queue.enqueue("d", kind="Delete", relation=Relation("other", OBJECT, Rule.OBJECT))
    assert (await queue.get(create.id)).state is DeliveryState.SUPERSEDED
    assert ids(await queue.admit(100)) == [delete.id]


@pytest.mark.parametrize(
    "newer",
    [UPDATE, DELETE, Relation(OBJECT, OBJECT, Rule.SAME_KEY), Relation("", OBJECT, Rule.SAME_KEY)],
)
async def test_what_only_keeps_the_order_of_a_key_is_not_replaced_by_it(
    queue: Queue, newer: Relation
) -> None:
    comment = "https://me.example/comment/1"
    kept = [
        await queue.enqueue("c", kind="Create", relation=Relation(OBJECT, comment)),
        await queue.enqueue("u", kind="Update", relation=Relation(OBJECT, comment, Rule.OLDER_UPDATES)),
        await queue.enqueue("k", kind="Update", relation=Relation(OBJECT, "key", Rule.SAME_KEY)),
        await queue.enqueue("n", kind="Update", relation=Relation(OBJECT)),
    ]
    await queue.enqueue("newer", kind="Delete" if newer is DELETE else "Update", relation=newer)
    assert DeliveryState.SUPERSEDED not in {(await queue.get(q.id)).state for q in kept}
    await queue.conserved()


async def test_a_key_cancels_what_has_it_and_nothing_else_of_its_name(
    queue: Queue, canceller: Canceller
) -> None:
    by_order = [
        await queue.enqueue("1", kind="Delete", relation=DELETE),
        await queue.enqueue("2", relation=Relation(OBJECT)),
        await queue.enqueue("3", relation=Relation(OBJECT, "other", Rule.SAME_KEY)),
    ]
    by_both = await queue.enqueue("4", path="/4", relation=Relation(OBJECT, OBJECT, Rule.SAME_KEY))
    by_supersede = [
        await queue.enqueue("5", path="/5", relation=Relation("", OBJECT, Rule.SAME_KEY)),
        await queue.enqueue("6", path="/6", relation=Relation("mine", OBJECT, Rule.SAME_KEY)),
    ]
    neither = await queue.enqueue("7", kind="Create", path="/7", relation=Relation("mine", OBJECT))
    assert await canceller.cancel_replaced(OBJECT) == (3, 0, 0)
    for queued in (by_both, *by_supersede):
        assert (await queue.get(queued.id)).state is DeliveryState.CANCELLED
    assert await canceller.cancel_ordered(OBJECT) == (3, 0, 1)
    for queued in by_order:
        assert (await queue.get(queued.id)).state is DeliveryState.CANCELLED
    assert ids(await queue.admit(100)) == [neither.id]
    assert await canceller.cancel_replaced(OBJECT, origins=frozenset()) == (0, 0, 0)
