"""What callers are told of a delivery that was replayed while the archive still holds how it ended before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from servers.calls import ACTIVITY
from servers.front import Front
from servers.queue import PARTITIONS, Queue, open_queue

from fedsvc.archive.archive import Archive
from fedsvc.archive.engine import create_engine
from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryState, Reason
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import types_pb2
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.archival_handler import ArchivalHandler
from fedsvc.worker.beats import Beats

READY, DEAD = types_pb2.DELIVERY_STATE_READY, types_pb2.DELIVERY_STATE_DEAD


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"FEDSVC_PARTITIONS": str(PARTITIONS)}


@pytest.fixture
async def queue(environment: dict[str, str]) -> AsyncIterator[Queue]:
    """That of the server."""
    async with open_queue(environment["REDIS_URL"], environment["FEDSVC_NAMESPACE"]) as opened:
        yield opened


async def replayed(server: Front, queue: Queue, environment: dict[str, str], request_of: Any) -> Delivery:
    """One of two dead letters of an activity, both archived, that is ready again."""
    for host in range(2):
        await server.delivery.QueueActivity(request_of(inbox=f"https://h{host}.example/inbox"))
    for admitted in await queue.admit_everywhere():
        await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE)
    await archived(queue, environment)
    (letter, _) = (await queue.dead.page(limit=2)).letters
    assert await queue.dead.move("replay", [letter]) == 1
    return letter


async def archived(queue: Queue, environment: dict[str, str]) -> None:
    settings = Settings.from_environment(environment)
    archive = Archive(create_engine(settings))
    affinity = Affinity("a", settings.partitions)
    while await ArchivalHandler(settings, queue.outcomes, archive, Beats("archive"), affinity).round():
        pass
    await archive.close()


async def test_a_replayed_delivery_is_told_once_and_as_it_is_now(
    server: Front, queue: Queue, environment: dict[str, str], request_of: Any
) -> None:
    letter = await replayed(server, queue, environment, request_of)

    async def listed(*states: Any) -> tuple[dict[int, int], list[tuple[str, int]]]:
        asked = pb.ListDeliveriesRequest(activity_id=ACTIVITY["id"], states=states)
        told = await server.delivery.ListDeliveries(asked)
        return {c.state: c.count for c in told.summary}, [(d.delivery_id, d.state) for d in told.deliveries]

    counts, all_of_it = await listed()
    assert dict(all_of_it)[str(letter.id)] == READY
    assert counts == {READY: 1, DEAD: 1}
    _, dead = await listed(DEAD)
    assert str(letter.id) not in dict(dead)
    assert len(dead) == 1


async def test_one_that_ends_while_it_is_looked_for_is_counted_once(
    server: Front,
    queue: Queue,
    environment: dict[str, str],
    request_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await replayed(server, queue, environment, request_of)
    list_by_activity = Archive.list_by_activity

    async def late(self: Archive, *arguments: Any, **chosen: Any) -> list[Delivery]:
        for admitted in await queue.admit_everywhere():
            await queue.deliver(admitted)
        await archived(queue, environment)
        return await list_by_activity(self, *arguments, **chosen)

    monkeypatch.setattr(Archive, "list_by_activity", late)
    told = await server.delivery.ListDeliveries(
        pb.ListDeliveriesRequest(activity_id=ACTIVITY["id"], page_size=-1)
    )
    assert {c.state: c.count for c in told.summary} == {types_pb2.DELIVERY_STATE_DELIVERED: 1, DEAD: 1}
