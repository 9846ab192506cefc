"""Items of a batch: who waits for whom."""

from __future__ import annotations

import asyncio

import pytest

from fedsvc.errors import QueueUnavailable
from fedsvc.server.turns import Accept, Turn, in_turn
from fedsvc.v1.delivery_service_pb2 import QueueActivityResult


def item(index: int, began: list[int], *, until: asyncio.Event | None = None, fails: bool = False) -> Accept:
    async def accept() -> QueueActivityResult:
        began.append(index)
        if until is not None:
            await until.wait()
        if fails:
            raise QueueUnavailable("away")
        return QueueActivityResult(index=index)

    return accept


async def test_those_that_share_something_wait_and_others_do_not() -> None:
    began: list[int] = []
    until = asyncio.Event()
    turns = [
        Turn("a", item(0, began, until=until)),
        Turn("ab", item(1, began)),
        Turn("c", item(2, began)),
        Turn("b", item(3, began)),
        Turn("", item(4, began)),
    ]
    running = asyncio.create_task(in_turn(turns))
    while len(began) < 3:
        await asyncio.sleep(0)
    assert began == [0, 2, 4]
    until.set()
    assert [result.index for result in await running] == [0, 1, 2, 3, 4]
    assert began == [0, 2, 4, 1, 3]


async def test_what_comes_after_one_that_failed_is_not_accepted() -> None:
    began: list[int] = []
    turns = [Turn("a", item(0, began, fails=True)), Turn("a", item(1, began)), Turn("b", item(2, began))]
    with pytest.raises(QueueUnavailable):
        await in_turn(turns)
    await asyncio.sleep(0)
    assert began == [0, 2]


async def test_who_gives_up_waits_for_nobody() -> None:
    began: list[int] = []
    running = asyncio.create_task(
        in_turn([Turn("a", item(0, began, until=asyncio.Event())), Turn("a", item(1, began))])
    )
    while not began:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0)
    assert began == [0]
    assert len(asyncio.all_tasks()) == 1
