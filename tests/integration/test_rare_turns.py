"""What happens seldom to hosts and deliveries: on a real server, with time moved."""

from __future__ import annotations

import pytest
from servers.queue import HOUR_MS, SECOND_MS, USUAL_LIMITS, Queue, ids, known, opened, probe_due
from servers.structure import check

from fedsvc.domain.delivery import DeliveryState, Priority, Reason
from fedsvc.domain.relations import Relation, Rule
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.consumer import Admitted, Signal
from fedsvc.queue.hosts import Circuit, HostPolicy
from fedsvc.queue.producer import Terms

HOST = "h0.example"
SLOWED = Signal.ANSWERED | Signal.SLOWED


@pytest.fixture
def limits() -> dict[str, str]:
    return USUAL_LIMITS


async def one(queue: Queue, name: str = "1") -> Admitted:
    await queue.enqueue(name)
    (admitted,) = await queue.admit(1)
    return admitted


async def asked_to_wait(queue: Queue, admitted: Admitted, pause_ms: int) -> int:
    """Until when the host is left alone."""
    await queue.settle(
        admitted, DeliveryState.RETRY, Reason.RATE_LIMITED, wait_ms=1, signal=SLOWED, pause_ms=pause_ms
    )
    return (await queue.hosts.get(HOST)).paused_until_ms


async def test_no_probe_goes_out_while_others_are_on_their_way(queue: Queue) -> None:
    await known(queue)
    for number in range(9):
        await queue.enqueue(str(number))
    flying = await queue.admit(100)
    assert len(flying) == 8
    for admitted in flying[:5]:
        await queue.fail(admitted)
    await probe_due(queue)
    assert await queue.admit(100) == []
    for admitted in flying[5:]:
        await queue.fail(admitted)
    await probe_due(queue)
    assert len(await queue.admit(100)) == 1


async def test_a_clock_that_is_set_back_does_not_put_a_probe_off_for_longer_than_an_interval(
    queue: Queue,
) -> None:
    await opened(queue, 1)
    await queue.pass_time(-1000 * HOUR_MS)
    await queue.enqueue("new")
    assert await queue.admit(100) == []
    await queue.pass_time(int(queue.settings.circuit_longest_probe * 1000) + 1)
    assert len(await queue.admit(100)) == 1


async def test_a_clock_that_is_set_back_lets_no_host_sleep_though_nothing_new_comes_for_it(
    queue: Queue,
) -> None:
    """Neither one that is down, nor one that recovers and is given little at first."""
    await opened(queue, 5)
    partition = queue.partition_of(0)
    await queue.pass_time(-1000 * HOUR_MS)
    await queue.hosts.audit(partition)
    await queue.pass_time(int(queue.settings.circuit_longest_probe * 1000) + 1)
    (probe,) = await queue.admit(100)
    await queue.deliver(probe)
    (second,) = await queue.admit(100)
    await queue.deliver(second)
    assert await queue.admit(100) == []
    await queue.pass_time(-1000 * HOUR_MS)
    await queue.hosts.audit(partition)
    await queue.pass_time(SECOND_MS)
    assert await queue.admit(100)


async def test_an_audit_wakes_nobody_before_its_time(queue: Queue) -> None:
    await opened(queue, 5)
    due = (await queue.hosts.get("h0.example")).next_probe_ms
    await queue.hosts.audit(queue.partition_of(0))
    assert (await queue.hosts.get("h0.example")).next_probe_ms == due
    assert await queue.admit(100) == []
    await queue.hosts.pause("h0.example", duration_ms=1000 * HOUR_MS)
    await queue.pass_time(HOUR_MS)
    await queue.hosts.audit(queue.partition_of(0))
    assert await queue.admit(100) == []


async def test_a_host_that_asks_twice_is_left_alone_for_the_longer_time_within_what_deliveries_live(
    queue: Queue,
) -> None:
    await known(queue)
    first, second, third = [await one(queue, name) for name in "abc"]
    until = await asked_to_wait(queue, first, 90 * SECOND_MS)
    assert await asked_to_wait(queue, second, 10 * SECOND_MS) == until
    longest = queue.settings.max_retry_duration * 1000
    until = await asked_to_wait(queue, third, 30 * 24 * HOUR_MS)
    assert until <= await queue.now_ms() + longest


async def test_a_host_that_comes_back_is_given_one_at_a_time_at_first(queue: Queue) -> None:
    await known(queue)
    await opened(queue, 5)
    await probe_due(queue)
    (probe,) = await queue.admit(100)
    await queue.deliver(probe)
    assert (await queue.hosts.get(HOST)).limit == 2, "one, and one more for the success"


async def test_a_host_that_is_resumed_is_probed_at_once(queue: Queue) -> None:
    await opened(queue, 1)
    assert (await queue.hosts.resume(HOST)).circuit is Circuit.OPEN
    assert len(await queue.admit(100)) == 1


async def test_a_lower_limit_holds_at_once(queue: Queue) -> None:
    await known(queue)
    assert (await queue.hosts.set_policy(HOST, HostPolicy(max_in_flight=3))).limit == 3


async def test_a_probe_that_nobody_has_any_more_is_made_up_for(queue: Queue) -> None:
    await opened(queue, 2)
    await probe_due(queue)
    (probe,) = await queue.admit(100)
    keys = queue.keys.partition(queue.partition_of(0))
    await queue.link.call("XACK", f"{keys.prefix}:woken", "workers", f"{probe.entry}-0")
    assert (await queue.hosts.audit(queue.partition_of(0))).wrong == 1
    assert len(await queue.admit(100)) == 1, "the next is the probe"


async def test_what_waits_for_a_host_whose_state_cannot_be_read_is_shown_and_goes_on(queue: Queue) -> None:
    """As that of an older build, or of a newer one."""
    await queue.hosts.pause("h0.example")
    waiting = [(await queue.enqueue(str(n), priority=Priority(n % 3 + 1))).id for n in range(6)]
    assert await queue.admit(10) == []
    prefix = queue.keys.partition(queue.partition_of(0)).prefix
    await queue.link.call("HSET", f"{prefix}:hosts", "h0.example", b"not as it is written now")
    assert (await queue.get(waiting[0])).state is DeliveryState.PARKED
    await queue.hosts.audit(queue.partition_of(0))
    await check(queue)
    taken = []
    while some := await queue.admit(10):
        taken += some
        for admitted in some:
            await queue.deliver(admitted)
    assert sorted(ids(taken)) == waiting
    await queue.is_whole(delivered=6)


async def test_what_expires_while_it_is_tried_is_not_tried_again(queue: Queue) -> None:
    expire_ms = await queue.now_ms() + 5 * SECOND_MS
    queued = await queue.enqueue("1", expire_ms=expire_ms)
    (admitted,) = await queue.admit(1)
    await queue.pass_time(10 * SECOND_MS)
    await queue.promote()
    await queue.fail(admitted, wait_ms=HOUR_MS)
    await queue.promote()
    assert (await queue.get(queued.id)).state is DeliveryState.EXPIRED
    assert (await queue.conserved()).retry == 0


async def test_a_dead_letter_does_not_expire(queue: Queue) -> None:
    queued = await queue.enqueue("1", expire_ms=await queue.now_ms() + 5 * SECOND_MS)
    (admitted,) = await queue.admit(1)
    await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE, signal=Signal.ANSWERED)
    await queue.pass_time(10 * SECOND_MS)
    await queue.promote()
    assert (await queue.get(queued.id)).state is DeliveryState.DEAD
    assert (await queue.conserved()).counter("dead") == 1


async def test_a_clock_that_is_set_back_makes_no_lease_longer(queue: Queue) -> None:
    await queue.reclaim("b")
    await one(queue)
    await queue.pass_time(-HOUR_MS, watched=False)
    assert await queue.reclaim("b") == [], "whoever lives has half a lease to say so"
    await queue.pass_time(int(queue.settings.lease * 400))
    assert await queue.reclaim("b") == []
    await queue.pass_time(int(queue.settings.lease * 200))
    assert len(await queue.reclaim("b")) == 1


async def test_a_delete_does_not_take_back_another(queue: Queue) -> None:
    note = "https://me.example/note"
    gone = Relation(note, note, Rule.OBJECT)
    first = await queue.enqueue("d1", kind="Delete", relation=gone)
    await queue.enqueue("d2", kind="Delete", relation=gone)
    assert (await queue.get(first.id)).state is DeliveryState.READY


async def test_an_activity_is_found_for_as_long_as_its_last_delivery_may_live(queue: Queue) -> None:
    queued = await queue.enqueue("1", path="/a")
    (key,) = await queue.keys_of("activity")
    before = await queue.link.call("PTTL", key)
    await queue.enqueue("1", path="/b", not_before_ms=await queue.now_ms() + 1000 * HOUR_MS)
    assert await queue.link.call("PTTL", key) > before + 999 * HOUR_MS
    (admitted,) = await queue.admit(1)
    assert admitted.id == queued.id
    await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE, signal=Signal.ANSWERED)
    await queue.link.call("PEXPIRE", key, SECOND_MS)
    assert await queue.dead.move("replay", (await queue.dead.page(limit=1)).letters) == 1
    assert await queue.link.call("PTTL", key) > before - HOUR_MS


async def test_a_body_that_has_changed_is_stored_once_as_well(queue: Queue) -> None:
    for path, mark in (("/a", "1"), ("/b", "2"), ("/c", "2")):
        message = queue.message("1")
        message.body = message.body + b" " * int(mark)
        message.digest = message.digest_of(message.body)
        await queue.producer.enqueue(message, queue.place(0, path), Terms(Priority.URGENT))
    assert sorted(await queue.references()) == [1, 2]


async def test_a_replay_forgets_that_somebody_wanted_it_no_more(queue: Queue) -> None:
    admitted = await one(queue)
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    assert (await canceller.cancel([admitted.id])).in_flight == 1
    await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE, signal=Signal.ANSWERED)
    assert await queue.dead.move("replay", (await queue.dead.page(limit=1)).letters) == 1
    (again,) = await queue.admit(1)
    await queue.fail(again)
    assert (await queue.get(again.id)).state is DeliveryState.RETRY


async def test_how_a_replayed_delivery_ended_is_kept_when_its_former_end_is_forgotten(queue: Queue) -> None:
    admitted = await one(queue)
    await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE, signal=Signal.ANSWERED)
    partition = queue.partition_of(0)
    _, last, count = await queue.outcomes.read(partition, 0, 10)
    await queue.outcomes.commit(partition, 0, last, count)
    assert await queue.dead.move("replay", (await queue.dead.page(limit=1)).letters) == 1
    (again,) = await queue.admit(1)
    await queue.deliver(again)
    assert await queue.outcomes.trim(partition, 10, early=True) == 1
    assert (await queue.get(again.id)).state is DeliveryState.DELIVERED
