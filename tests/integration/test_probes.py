"""What a platform asks a server: health by gRPC without TLS, the queue's depth, and connections made anew."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import grpc
import pytest
from fedsvc_client import AsyncFedsvcClient
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servers.front import front

from fedsvc.config import Settings
from fedsvc.server.app import SERVICES
from fedsvc.server.queue_metrics import QueueMetrics
from fedsvc.v1.operations_service_pb2 import GetQueueStatsRequest
from fedsvc.v1.operations_service_pb2_grpc import OperationsServiceStub

KEY_ID = "https://me.example/u/ada#main-key"


def get(url: str) -> tuple[int, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


async def test_health_alone_answers_by_service_name_and_nothing_else_does(
    environment: dict[str, str], free_port: int
) -> None:
    address = f"127.0.0.1:{free_port}"
    async with (
        front(Settings.from_environment(environment | {"FEDSVC_HEALTH_LISTEN": address})),
        grpc.aio.insecure_channel(address) as channel,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        for call, code in (
            (health.Check(health_pb2.HealthCheckRequest(service="none")), grpc.StatusCode.NOT_FOUND),
            (
                OperationsServiceStub(channel).GetQueueStats(GetQueueStatsRequest()),
                grpc.StatusCode.UNIMPLEMENTED,
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert error.value.code() is code


async def test_the_depth_is_what_waits_and_is_in_flight_and_an_error_while_it_is_not_known(
    environment: dict[str, str], rsa_pem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueueMetrics, "EVERY", 0.05)
    like = {
        "id": "https://me.example/l/1",
        "type": "Like",
        "actor": "https://me.example/u/ada",
        "object": "https://o.example/1",
    }
    async with (
        front(Settings.from_environment(environment)) as server,
        AsyncFedsvcClient(server.target) as client,
    ):
        inboxes = [f"https://h{number}.example/inbox" for number in range(3)]
        await client.fan_out(like, inboxes, private_key=rsa_pem, key_id=KEY_ID)
        async with asyncio.timeout(20):
            while (told := await asyncio.to_thread(get, f"http://{server.http}/depth"))[1].get("depth") != 3:
                await asyncio.sleep(0.02)
        assert told == (200, {"ready": 3, "in_flight": 0, "depth": 3})
        monkeypatch.setattr(QueueMetrics, "OLD", -1.0)
        status, body = await asyncio.to_thread(get, f"http://{server.http}/depth")
        assert (status, list(body)) == (503, ["error"])


async def test_a_connection_is_made_anew_when_it_is_old(environment: dict[str, str]) -> None:
    async with front(Settings.from_environment(environment | {"FEDSVC_MAX_CONNECTION_AGE": "1"})) as server:
        await server.operations.GetQueueStats(GetQueueStatsRequest())
        assert server.channel.get_state() is grpc.ChannelConnectivity.READY
        async with asyncio.timeout(20):
            await server.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        await server.operations.GetQueueStats(GetQueueStatsRequest())
