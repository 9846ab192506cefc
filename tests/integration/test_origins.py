"""Several instances share a queue, and none can hurt another."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from servers.queue import Queue, open_queue
from servers.valkey import ValkeyServer

from fedsvc.domain.delivery import DeliveryState
from fedsvc.domain.relations import Relation, Rule
from fedsvc.queue.producer import FannedOut

A, B = "a.example", "b.example"


@pytest.fixture
async def queue(valkey: ValkeyServer, namespace: str) -> AsyncIterator[Queue]:
    async with open_queue(valkey.url, namespace) as opened:
        yield opened


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
