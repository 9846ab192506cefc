"""Callers with rights to one instance each: for them, what is of another is as if it were not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from servers.front import Front, front

from fedsvc.config import Settings
from fedsvc.server.caller import Caller
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import operations_service_pb2 as ops

ACTIVITY = "https://shared.example/1"


@dataclass
class Instance:
    """One caller. Calls end with what the server answers, or with its code."""

    server: Front
    token: str
    origin: str
    pem: str

    async def call(self, method: str, request: Any) -> Any:
        stub = self.server.delivery if hasattr(self.server.delivery, method) else self.server.operations
        try:
            return await getattr(stub, method)(
                request, metadata=(("authorization", f"Bearer {self.token}"),), timeout=10
            )
        except grpc.aio.AioRpcError as error:
            return error.code()

    async def fan_out(self, inboxes: int, **fields: Any) -> Any:
        actor = f"https://{self.origin}/u/ada"
        activity = {"id": ACTIVITY, "type": "Announce", "actor": actor, "object": "https://x.example/1"}
        return await self.call(
            "FanOutActivity",
            pb.FanOutActivityRequest(
                activity=json.dumps(activity | fields).encode(),
                inboxes=[f"https://h{n}.example/inbox" for n in range(inboxes)],
                signing_key=pb.SigningKey(key_id=f"{actor}#main-key", private_key_pem=self.pem),
            ),
        )

    async def listed(self) -> Any:
        return await self.call("ListDeliveries", pb.ListDeliveriesRequest(activity_id=ACTIVITY, page_size=50))


@pytest.fixture
async def two(environment: dict[str, str], rsa_pem: str) -> AsyncIterator[tuple[Instance, Instance]]:
    tokens = {origin: new_token() for origin in ("a.example", "b.example")}
    told = " ".join(
        entry_text(Caller(origin[0], origins=frozenset({origin})), token) for origin, token in tokens.items()
    )
    async with front(Settings.from_environment(environment | {"FEDSVC_TOKENS": told})) as running:
        a, b = (Instance(running, token, origin, rsa_pem) for origin, token in tokens.items())
        yield a, b


async def test_a_caller_sees_and_cancels_what_is_its_instances_and_nothing_else(
    two: tuple[Instance, Instance],
) -> None:
    a, b = two
    assert (await a.fan_out(3)).accepted == 3
    assert await b.listed() is grpc.StatusCode.NOT_FOUND
    assert (await b.fan_out(5)).accepted == 5
    theirs = (await b.listed()).deliveries
    assert ({d.origin for d in theirs}, len(theirs)) == ({"b.example"}, 5)
    assert [s.count for s in (await a.listed()).summary] == [3]
    one = pb.GetDeliveryRequest(delivery_id=theirs[0].delivery_id)
    assert await a.call("GetDelivery", one) is grpc.StatusCode.NOT_FOUND
    assert (await b.call("GetDelivery", one)).delivery.origin == "b.example"
    chosen = pb.DeliveryIds(delivery_ids=[theirs[0].delivery_id])
    cancelled = await a.call("CancelDeliveries", pb.CancelDeliveriesRequest(deliveries=chosen))
    assert (cancelled.cancelled, cancelled.ended) == (0, 1)
    cancelled = await a.call("CancelDeliveries", pb.CancelDeliveriesRequest(host="h0.example"))
    assert (cancelled.cancelled, cancelled.in_flight, cancelled.ended) == (1, 0, 0)
    cancelled = await a.call("CancelDeliveries", pb.CancelDeliveriesRequest(activity_id=ACTIVITY))
    assert (cancelled.cancelled, cancelled.in_flight, cancelled.ended) == (2, 0, 1)
    assert len((await b.listed()).deliveries) == 5
    dead = ops.GetDeadLetterRequest(delivery_id=theirs[0].delivery_id)
    assert await a.call("GetDeadLetter", dead) is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_hears_of_its_own_instance_only(two: tuple[Instance, Instance]) -> None:
    a, b = two
    metadata = (("authorization", f"Bearer {a.token}"),)
    stream = a.server.delivery.WatchOutcomes(pb.WatchOutcomesRequest(), metadata=metadata, timeout=20)
    await stream.read()  # it is there from now on
    await asyncio.gather(a.fan_out(2), b.fan_out(2))
    for caller in (b, a):
        await caller.call("CancelDeliveries", pb.CancelDeliveriesRequest(activity_id=ACTIVITY))
    heard: list[str] = []
    while len(heard) < 2:
        seen = await stream.read()
        if not seen.heartbeat:
            heard.append(seen.delivery.origin)
    assert heard == ["a.example", "a.example"]
    stream.cancel()


async def test_an_origin_with_a_full_backlog_is_refused_and_others_are_not(
    environment: dict[str, str], rsa_pem: str
) -> None:
    async with front(Settings.from_environment(environment | {"FEDSVC_ORIGIN_BACKLOG": "10"})) as running:
        a, b = (Instance(running, "", origin, rsa_pem) for origin in ("a.example", "b.example"))
        assert (await a.fan_out(8, id=f"{ACTIVITY}0")).accepted == 8
        assert await a.fan_out(3, id=f"{ACTIVITY}1") is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await a.fan_out(2, id=f"{ACTIVITY}2")).accepted == 2
        assert (await b.fan_out(10, id=f"{ACTIVITY}3")).accepted == 10
        actor = "https://a.example/u/ada"
        one = pb.QueueActivityRequest(
            activity=json.dumps(
                {"id": f"{ACTIVITY}4", "type": "Like", "actor": actor, "object": "https://x.example/1"}
            ).encode(),
            inbox="https://h1.example/inbox",
            signing_key=pb.SigningKey(key_id=f"{actor}#k", private_key_pem=rsa_pem),
        )
        answer = await a.call("QueueActivities", pb.QueueActivitiesRequest(requests=[one, one]))
        assert [r.error.reason for r in answer.results] == ["ORIGIN_BACKLOG"] * 2
        stats = await running.operations.GetQueueStats(ops.GetQueueStatsRequest())
        assert [(o.origin, o.pending) for o in stats.origins] == [("a.example", 10), ("b.example", 10)]
