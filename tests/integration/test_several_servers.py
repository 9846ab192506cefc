"""A client that knows several servers: whom it calls, and what it notices when one of them goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from fedsvc_client import AsyncFedsvcClient, FedsvcClient
from fedsvc_client._channel import HEALTH_SERVICE, channel_target
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servers.front import front
from servers.unbuilt import unbuilt

from fedsvc.config import Settings
from fedsvc.server.app import SERVICES, Server
from fedsvc.server.health import Health
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import operations_service_pb2 as operations_pb2
from fedsvc.v1 import types_pb2
from fedsvc.v1.delivery_service_pb2_grpc import DeliveryServiceStub, add_DeliveryServiceServicer_to_server
from fedsvc.v1.operations_service_pb2_grpc import OperationsServiceStub

ACTIVITY = {"id": "https://me.example/1", "type": "Like", "actor": "https://me.example/u/a", "object": "o"}
CALL: dict[str, Any] = {"private_key": "pem", "key_id": "https://me.example/u/a#main-key"}


class Counting:
    """Takes every activity, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.health = Health()
        self.target = ""

    def __getattr__(self, name: str) -> Any:
        """What else the service has."""
        if not name[0].isupper():
            raise AttributeError(name)
        return unbuilt

    async def QueueActivity(self, request: pb.QueueActivityRequest, context: Any) -> pb.QueueActivityResponse:
        self.calls += 1
        return pb.QueueActivityResponse(delivery=types_pb2.Delivery(delivery_id="1-1"))

    async def tell(self, serving: bool) -> None:
        await self.health.tell({HEALTH_SERVICE: serving})


@asynccontextmanager
async def several(count: int) -> AsyncIterator[list[Counting]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            counting, server = Counting(), grpc.aio.server()
            add_DeliveryServiceServicer_to_server(counting, server)  # type: ignore[arg-type]
            health_pb2_grpc.add_HealthServicer_to_server(counting.health, server)
            counting.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await counting.tell(True)
            await server.start()
            stack.push_async_callback(server.stop, 0)
            stack.push_async_callback(counting.health.close)
            made.append(counting)
        yield made


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("fedsvc:50051", "fedsvc:50051"),
        ("10.0.0.1:50051", "10.0.0.1:50051"),
        (" 10.0.0.1:50051\n", "10.0.0.1:50051"),
        ("10.0.0.1:50051, 10.0.0.2:50051", "ipv4:10.0.0.1:50051,10.0.0.2:50051"),
        ("[::1]:50051,[fd00::2]:50052", "ipv6:[::1]:50051,[fd00::2]:50052"),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (" ipv4:10.0.0.1:1,10.0.0.2:2\n", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("dns:///fedsvc:50051", "dns:///fedsvc:50051"),
    ],
)
def test_what_a_target_means(target: str, meant: str) -> None:
    assert channel_target(target) == meant


@pytest.mark.parametrize(
    "target", ["a:1,b:1", "10.0.0.1:1,[::1]:1", "10.0.0.1:1,b:1", ",", "10.0.0.1,10.0.0.2"]
)
def test_several_names_are_refused_at_once(target: str) -> None:
    with pytest.raises(ValueError, match="dns:///"):
        FedsvcClient(target)


def test_the_service_whose_health_clients_watch_is_one_that_servers_tell_of() -> None:
    assert HEALTH_SERVICE in SERVICES


async def test_calls_go_to_all_in_turn_and_to_none_that_says_it_cannot_serve() -> None:
    async with several(3) as servers:
        target = ",".join(server.target for server in servers)
        async with AsyncFedsvcClient(target) as client:

            async def call(times: int) -> list[int]:
                before = [server.calls for server in servers]
                for _ in range(times):
                    await client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL)
                return [server.calls - count for server, count in zip(servers, before, strict=True)]

            async with asyncio.timeout(20):
                while min(await call(3)) == 0:
                    pass  # until all three are connected
            assert await call(9) == [3, 3, 3]
            await servers[1].tell(False)
            async with asyncio.timeout(20):
                while (await call(3))[1]:
                    pass
            assert (await call(10))[1] == 0
            assert client.retries == 0, "nobody was asked who could not"
            await servers[1].tell(True)
            async with asyncio.timeout(20):
                while not (await call(3))[1]:
                    pass


async def test_a_server_that_stops_says_so_before_it_lets_go_and_streams_end_so_that_they_go_on_elsewhere(
    environment: dict[str, str],
) -> None:
    told: list[str] = []
    async with AsyncExitStack() as stack:
        async with front(Settings.from_environment(environment), farewell=Server.farewell) as server:
            # their channel outlives the server's
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.target))
            health: Any = health_pb2_grpc.HealthStub(channel)
            watching = {
                "health": health.Watch(health_pb2.HealthCheckRequest(service=HEALTH_SERVICE)),
                "outcomes": DeliveryServiceStub(channel).WatchOutcomes(pb.WatchOutcomesRequest()),
                "figures": OperationsServiceStub(channel).WatchQueueStats(
                    operations_pb2.WatchQueueStatsRequest()
                ),
            }
            for stream in watching.values():
                await stream.read()

            async def follow(name: str, stream: Any) -> None:
                try:
                    while (message := await stream.read()) is not grpc.aio.EOF:
                        if name == "health":
                            told.append(health_pb2.HealthCheckResponse.ServingStatus.Name(message.status))
                    told.append(f"{name} OK")
                except grpc.aio.AioRpcError as error:
                    told.append(f"{name} {error.code().name} {'STOPPING' in str(error.trailing_metadata())}")

            following = [asyncio.create_task(follow(*item)) for item in watching.items()]
        async with asyncio.timeout(10):
            await asyncio.gather(*following)
    assert sorted(told) == [
        "NOT_SERVING",
        "figures UNAVAILABLE True",
        "health OK",
        "outcomes UNAVAILABLE True",
    ]
    assert told.index("NOT_SERVING") < told.index("health OK")
