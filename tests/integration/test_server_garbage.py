"""What no honest caller sends, and what strangers without a token may do: nobody else is harmed."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servers.front import Front

from fedsvc.server import pages
from fedsvc.server.health import MOST_WATCHERS, Health
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import key_service_pb2 as keys_pb
from fedsvc.v1 import operations_service_pb2 as operations_pb

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def refusal(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code()


@pytest.mark.parametrize("position", ["x", -1, 2**63, [1], [2**63, "a"], {}, True, "a\0", [[], []]])
async def test_a_made_up_position_in_a_page_token_is_the_callers_fault(server: Front, position: Any) -> None:
    activity = "https://me.example/1"
    calls = [
        server.delivery.ListDeliveries(
            pb.ListDeliveriesRequest(activity_id=activity, page_token=pages.encode(position, activity, []))
        ),
        server.operations.ListDeadLetters(
            operations_pb.ListDeadLettersRequest(page_token=pages.encode(position))
        ),
        server.operations.ListAuditEvents(
            operations_pb.ListAuditEventsRequest(page_token=pages.encode(position, "", "", 0, 0))
        ),
    ]
    if position != "x":  # which is before every key
        calls.append(server.keys.ListKeys(keys_pb.ListKeysRequest(page_token=pages.encode(position, ""))))
    for call in calls:
        assert await refusal(call) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["a\0b", "x" * 65, "\n"])
async def test_an_audit_that_cannot_be_is_not_looked_for(server: Front, name: str) -> None:
    for field in ("principal", "action"):
        asked: Any = {field: name}
        call = server.operations.ListAuditEvents(operations_pb.ListAuditEventsRequest(**asked))
        assert await refusal(call) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("garbage", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe"])
async def test_garbage_is_the_callers_fault_with_and_without_a_token(server: Front, garbage: bytes) -> None:
    channel: Any = server.channel  # its types do not know methods without a codec
    assert (
        await refusal(channel.unary_unary("/grpc.health.v1.Health/Check")(garbage))
        is grpc.StatusCode.INVALID_ARGUMENT
    )
    watching: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")(garbage)
    assert await refusal(watching.read()) is grpc.StatusCode.INVALID_ARGUMENT
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    reflecting: Any = channel.stream_stream(method)()
    await reflecting.write(garbage)  # and no more: a client that writes as its call ends may blame itself
    assert await reflecting.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_strangers_who_watch_health_leave_room_for_calls(server: Front) -> None:
    stub: Any = health_pb2_grpc.HealthStub(server.channel)
    watchers = [stub.Watch(health_pb2.HealthCheckRequest(service=f"s{n}")) for n in range(MOST_WATCHERS)]
    for watcher in watchers:
        await watcher.read()
    more = stub.Watch(health_pb2.HealthCheckRequest())
    # which makes clients do without, instead of taking the server for ill
    assert await refusal(more.read()) is grpc.StatusCode.UNIMPLEMENTED
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
    for watcher in watchers:
        watcher.cancel()


async def test_a_watcher_of_health_that_leaves_takes_nobodys_news_along() -> None:
    health = Health()
    await health.tell({"": True})
    one, other = (health.Watch(health_pb2.HealthCheckRequest(), None) for _ in range(2))
    assert [(await anext(watcher)).status for watcher in (one, other)] == [SERVING, SERVING]
    await one.aclose()
    await health.tell({"": False})
    assert (await anext(other)).status == NOT_SERVING
    await health.tell({"": True})
    assert (await anext(other)).status == SERVING
    await health.end()
    assert (await anext(other)).status == NOT_SERVING
    await other.aclose()
