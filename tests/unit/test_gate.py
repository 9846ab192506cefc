"""Who is prepared next."""

from __future__ import annotations

import asyncio

from fedsvc.domain.delivery import Priority
from fedsvc.worker.gate import Gate


async def test_as_many_as_allowed_are_inside_and_the_next_comes_when_one_leaves() -> None:
    gate, inside, most = Gate(3), 0, 0

    async def one() -> None:
        nonlocal inside, most
        await gate.enter(Priority.NORMAL)
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1
        gate.leave()

    await asyncio.gather(*(one() for _ in range(50)))
    assert most == 3


async def test_urgent_passes_those_that_wait_and_bulk_gets_a_tenth() -> None:
    gate, order = Gate(1), []
    await gate.enter(Priority.BULK)

    async def one(priority: Priority) -> None:
        await gate.enter(priority)
        order.append(priority)
        gate.leave()

    tasks = [asyncio.create_task(one(p)) for p in (*[Priority.BULK] * 30, *[Priority.URGENT] * 30)]
    await asyncio.sleep(0)
    gate.leave()
    await asyncio.gather(*tasks)
    assert order[:20].count(Priority.URGENT) == 18
    assert order[:10].count(Priority.BULK) == 1
    assert len(order) == 60


async def test_who_gives_up_keeps_nobody_out() -> None:
    gate = Gate(1)
    await gate.enter(Priority.URGENT)
    gone = asyncio.create_task(gate.enter(Priority.URGENT))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    let_in = asyncio.create_task(gate.enter(Priority.URGENT))
    await asyncio.sleep(0)
    gate.leave()
    await asyncio.wait_for(let_in, 5)


async def test_who_is_cancelled_as_it_is_let_in_leaves() -> None:
    gate = Gate(1)
    await gate.enter(Priority.URGENT)
    unlucky = asyncio.create_task(gate.enter(Priority.URGENT))
    await asyncio.sleep(0)
    gate.leave()
    unlucky.cancel()
    await asyncio.gather(unlucky, return_exceptions=True)
    await asyncio.wait_for(gate.enter(Priority.URGENT), 5)
