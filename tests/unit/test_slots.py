import asyncio

import pytest

from fedsvc.worker.slots import HostSlots


async def waiting_for(slots: HostSlots, host: str, timeout_s: float = 5) -> asyncio.Task[bool]:
    task = asyncio.create_task(slots.take(host, timeout_s))
    await asyncio.sleep(0)
    return task


async def test_hosts_do_not_take_each_others_slots() -> None:
    slots = HostSlots(1)
    assert slots.try_take("a.example")
    assert slots.try_take("b.example")
    assert not slots.try_take("a.example")


async def test_who_waits_longest_is_next() -> None:
    slots = HostSlots(1)
    slots.try_take("h")
    first, second = await waiting_for(slots, "h"), await waiting_for(slots, "h")
    slots.release("h")
    await asyncio.sleep(0)
    assert (first.done(), second.done()) == (True, False)
    assert not slots.try_take("h")  # a newcomer does not overtake
    slots.release("h")
    assert await second


async def test_a_wait_ends_at_its_deadline() -> None:
    slots = HostSlots(1)
    slots.try_take("h")
    assert not await slots.take("h", 0.01)
    slots.release("h")
    assert slots.try_take("h")


@pytest.mark.parametrize("handed_over", [False, True])
async def test_a_wait_that_is_cancelled_loses_no_slot(handed_over: bool) -> None:
    slots = HostSlots(1)
    slots.try_take("h")
    waiting = await waiting_for(slots, "h")
    if handed_over:
        slots.release("h")  # and cancelled before it could run
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not handed_over:
        slots.release("h")
    assert slots.try_take("h")


async def test_nothing_is_remembered_of_hosts_that_are_idle() -> None:
    slots = HostSlots(1)
    slots.try_take("h")
    assert not await slots.take("h", 0.01)
    waiting = await waiting_for(slots, "h")
    slots.release("h")
    assert await waiting
    slots.release("h")
    assert slots._taken == {}
    assert slots._waiting == {}
