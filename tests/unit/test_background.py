"""Loops end when they are told to, whatever else happens in that moment."""

from __future__ import annotations

import asyncio

import pytest

from fedsvc import background
from fedsvc.errors import QueueUnavailable


async def tidy(first: asyncio.Future[None], second: asyncio.Future[None]) -> None:
    """As a worker's loops are: an outage only delays them."""
    while True:
        try:
            await asyncio.gather(first, second)
        except QueueUnavailable:
            await asyncio.sleep(3600)


async def test_a_loop_that_lost_its_cancellation_to_an_outage_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "AGAIN", 0.01)
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    task = asyncio.create_task(tidy(first, second))
    await asyncio.sleep(0)
    first.set_exception(QueueUnavailable("gone"))
    async with asyncio.timeout(10):
        await background.end([task])
    assert task.cancelled()
    assert task.cancelling() == 2, "once was enough: the test does not show what it is for"


async def test_those_that_have_ended_are_left_alone() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await background.end([task])
    assert not task.cancelled()
