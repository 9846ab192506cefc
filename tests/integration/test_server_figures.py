"""Figures of the whole queue over gRPC: once, again and again, and what they say is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from servers.front import Front, front
from servers.hosts import MadeHost, put
from servers.queue import PARTITIONS, Queue

from fedsvc.config import Settings
from fedsvc.v1 import operations_service_pb2 as ops


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    more = {"FEDSVC_PARTITIONS": str(PARTITIONS), "FEDSVC_MAX_WATCHERS": "2"}
    return Settings.from_environment(environment | more)


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Front]:
    async with front(settings) as opened:
        yield opened


def request(ms: int = 100) -> ops.WatchQueueStatsRequest:
    interval = Duration()
    interval.FromMilliseconds(ms)
    return ops.WatchQueueStatsRequest(interval=interval)


async def test_who_watches_sees_the_queue_change(server: Front, queue: Queue) -> None:
    call = server.operations.WatchQueueStats(request(), timeout=20)
    seen = []
    for number in range(3):
        seen.append((await call.read()).stats.accepted)
        await queue.enqueue(str(number))
    while seen[-1] < 3:
        seen.append((await call.read()).stats.accepted)
    assert seen[0] == 0
    assert seen == sorted(seen)
    call.cancel()


@pytest.mark.parametrize("ms", [0, 99, -5000])
async def test_an_interval_that_is_too_short_is_refused(server: Front, ms: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="interval: ") as refused:
        await anext(aiter(server.operations.WatchQueueStats(request(ms))))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_no_more_than_so_many_watch_at_a_time(server: Front) -> None:
    calls = [server.operations.WatchQueueStats(request(60_000), timeout=20) for _ in range(2)]
    for call in calls:
        await call.read()
    with pytest.raises(grpc.aio.AioRpcError, match="FEDSVC_MAX_WATCHERS") as refused:
        await anext(aiter(server.operations.WatchQueueStats(request())))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()


async def test_watching_is_left_to_another_server_when_this_one_stops(settings: Settings) -> None:
    async with front(settings) as opened:
        channel = grpc.aio.insecure_channel(opened.target)
        call = ops_stub(channel).WatchQueueStats(request(3_600_000), timeout=30)
        assert (await call.read()).stats.conserved
    with pytest.raises(grpc.aio.AioRpcError, match="another goes on") as ended:
        await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    await channel.close()


def ops_stub(channel: grpc.aio.Channel) -> Any:
    from fedsvc.v1.operations_service_pb2_grpc import OperationsServiceStub

    return OperationsServiceStub(channel)


async def bottleneck(server: Front) -> str:
    stats = await server.operations.GetQueueStats(ops.GetQueueStatsRequest())
    return ops.Bottleneck.Name(stats.bottleneck)


async def test_the_bottleneck_is_told(server: Front, queue: Queue) -> None:
    assert await bottleneck(server) == "BOTTLENECK_NONE"
    await queue.hosts.pause("h0.example")
    await put(queue, [MadeHost("h1.example", circuit=1)])
    for number in range(8):
        await queue.enqueue(f"a{number}", inbox=0)
    assert await bottleneck(server) == "BOTTLENECK_WORKERS"
    await queue.admit_everywhere()
    assert await bottleneck(server) == "BOTTLENECK_HOST_LIMITS"


async def test_what_waits_for_hosts_that_are_down_is_told(server: Front, queue: Queue) -> None:
    for number in range(5):
        await queue.enqueue(f"bad{number}")
    for admitted in await queue.admit(5):
        await queue.fail(admitted)
    for number in range(20):
        await queue.enqueue(f"n{number}")
    await queue.admit_everywhere()
    stats = await server.operations.GetQueueStats(ops.GetQueueStatsRequest())
    assert (stats.parked, stats.parked_behind_circuits, stats.open_circuits) == (20, 20, 1)
    assert stats.bottleneck == ops.BOTTLENECK_CIRCUITS


async def test_memory_is_told_by_category(server: Front, queue: Queue) -> None:
    await queue.fan_out("1", range(40))
    status = await server.operations.GetMemoryStatus(ops.GetMemoryStatusRequest())
    categories = {category.name: category for category in status.categories}
    assert categories["deliveries"].entries == 40
    assert categories["deliveries"].bytes > 40 * 40
    assert {"ready", "retry", "dead", "outcomes", "hosts", "other"} <= set(categories)
    assert sum(c.bytes for c in categories.values()) >= status.used_bytes * 0.9
