"""Order within a host: on a real server, with time moved."""

from __future__ import annotations

import pytest
from servers.queue import OBJECT, ORDERED, SECOND_MS, UPDATE, Queue, ids

from fedsvc.domain.delivery import DeliveryState, Priority
from fedsvc.domain.relations import Relation
from fedsvc.queue.producer import Terms


async def test_deliveries_with_one_ordering_key_go_one_after_the_other(queue: Queue) -> None:
    sent = [await queue.enqueue(str(n), relation=ORDERED) for n in range(4)]
    other = await queue.enqueue("other")
    taken = await queue.admit(100)
    assert ids(taken) == [sent[0].id, other.id]
    assert (await queue.get(sent[1].id)).state is DeliveryState.PARKED
    assert (await queue.conserved()).parked == 3
    order = []
    for _ in range(4):
        (first, *_) = taken
        order.append(first.id)
        assert (await queue.settle(first, DeliveryState.DELIVERED)).woken is (len(order) < 4)
        taken = await queue.admit(100)
    assert order == ids(sent)
    assert (await queue.conserved()).parked == 0


@pytest.mark.parametrize("end", [DeliveryState.DEAD, DeliveryState.EXPIRED])
async def test_order_survives_retries_and_ends_with_the_delivery(queue: Queue, end: DeliveryState) -> None:
    first, second = [await queue.enqueue(str(n), relation=ORDERED) for n in range(2)]
    (admitted,) = await queue.admit(100)
    await queue.fail(admitted, wait_ms=50)
    assert await queue.admit(100) == []
    await queue.pass_time(60)
    await queue.promote()
    (admitted,) = await queue.admit(100)
    assert admitted.id == first.id
    await queue.settle(admitted, end)
    assert ids(await queue.admit(100)) == [second.id]


async def test_order_survives_the_death_of_a_worker(queue: Queue) -> None:
    sent = [await queue.enqueue(str(n), relation=ORDERED) for n in range(3)]
    await queue.admit(100, worker="dead")
    await queue.pass_time(int(queue.settings.lease * 1000) + 1)
    (taken,) = await queue.reclaim("b")
    assert taken.id == sent[0].id
    assert await queue.admit(100, worker="b") == []
    await queue.settle(taken, DeliveryState.DELIVERED, worker="b")
    assert ids(await queue.admit(100, worker="b")) == [sent[1].id]


async def test_order_is_kept_within_a_host_only(queue: Queue) -> None:
    a = await queue.enqueue("1", relation=ORDERED)
    b = await queue.enqueue("2", inbox=1, relation=ORDERED)
    c = await queue.enqueue("3", path="/another", relation=ORDERED)
    assert set(ids(await queue.admit_everywhere())) == {a.id, b.id}
    assert (await queue.get(c.id)).state is DeliveryState.PARKED


async def test_one_activity_to_many_inboxes_of_a_host_is_not_held_up_by_itself(queue: Queue) -> None:
    places = [queue.place(0, f"/u/{n}") for n in range(20)]
    await queue.producer.fan_out(queue.message("1"), places, Terms(Priority.BULK, relation=ORDERED))
    after = await queue.enqueue("2", relation=ORDERED)
    last = await queue.enqueue("3", relation=ORDERED)
    taken = await queue.admit(100)
    assert len(taken) == 20
    for admitted in taken[:-1]:
        await queue.settle(admitted, DeliveryState.DELIVERED)
    assert await queue.admit(100) == [], "one is not there yet"
    await queue.settle(taken[-1], DeliveryState.DELIVERED)
    (second,) = await queue.admit(100)
    assert second.id == after.id
    await queue.settle(second, DeliveryState.DELIVERED)
    assert ids(await queue.admit(100)) == [last.id]


@pytest.mark.parametrize("first_ended", [False, True])
async def test_what_is_newer_waits_for_all_inboxes_of_a_host_in_however_many_calls_they_came(
    queue: Queue, first_ended: bool
) -> None:
    a = await queue.enqueue("1", path="/a", relation=ORDERED)
    (flying,) = await queue.admit(100)
    await queue.fail(flying, wait_ms=50)
    await queue.enqueue("1", path="/b", relation=ORDERED)
    (other,) = await queue.admit(100)
    if first_ended:
        await queue.deliver(other)
    newer = await queue.enqueue("2", path="/a", relation=ORDERED)
    if not first_ended:
        await queue.deliver(other)
    assert await queue.admit(100) == [], "the first inbox still waits for its retry"
    await queue.pass_time(60)
    await queue.promote()
    (again,) = await queue.admit(100)
    assert again.id == a.id
    await queue.deliver(again)
    assert ids(await queue.admit(100)) == [newer.id]


async def test_nobody_waits_for_what_keeps_another_order(queue: Queue) -> None:
    create = await queue.enqueue("c", kind="Create", relation=Relation("mine", OBJECT))
    (flying,) = await queue.admit(100)
    update = await queue.enqueue("u", kind="Update", relation=UPDATE)
    assert flying.id == create.id
    assert ids(await queue.admit(100)) == [update.id]


async def test_what_is_scheduled_keeps_its_place_and_its_time(queue: Queue) -> None:
    first = await queue.enqueue("1", relation=ORDERED)
    tomorrow = await queue.now_ms() + 100 * SECOND_MS
    second = await queue.enqueue("2", relation=ORDERED, not_before_ms=tomorrow)
    (admitted,) = await queue.admit(100)
    assert admitted.id == first.id
    await queue.settle(admitted, DeliveryState.DELIVERED)
    assert await queue.admit(100) == []
    delivery = await queue.get(second.id)
    assert (delivery.state, delivery.next_attempt_ms) == (DeliveryState.SCHEDULED, tomorrow)
    assert (await queue.conserved()).scheduled == 1
    await queue.pass_time(101 * SECOND_MS)
    await queue.promote()
    assert ids(await queue.admit(100)) == [second.id]


async def test_an_index_of_a_busy_key_does_not_grow_with_what_has_ended(queue: Queue) -> None:
    prefix = queue.keys.partition(queue.partition_of(0)).prefix
    for number in range(1200):
        await queue.enqueue(str(number), relation=ORDERED)
        (admitted,) = await queue.admit(10)
        await queue.settle(admitted, DeliveryState.DELIVERED)
    (group,) = await queue.link.call("KEYS", f"{prefix}:group:*")
    assert await queue.link.call("STRLEN", group) < 8192
    assert await queue.link.call("KEYS", f"{prefix}:held:*") == []
    assert await queue.link.call("EXISTS", f"{prefix}:followed") == 0
