"""The client against a server that fails in the ways that servers do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import grpc
import pytest
from fedsvc_client import (
    AsyncFedsvcClient,
    ClientClosed,
    DeadlineExceeded,
    DeliveryPage,
    FedsvcClient,
    Unavailable,
)
from fedsvc_client._connections import Connection
from servers.failing import ACTIVITY, CALL, Failing, served
from servers.scripted import Scripted

from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import operations_service_pb2 as operations_pb
from fedsvc.v1 import types_pb2


async def test_a_call_is_repeated_under_one_request_id_until_it_succeeds() -> None:
    servicer = Failing(failures=2)
    async with served(servicer) as target:
        async with AsyncFedsvcClient(target) as client:
            queued = await client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL)
        assert queued.delivery_id == "1-1"
        assert len(servicer.requests) == 3
        assert len({request.request_id for request in servicer.requests}) == 1
        assert servicer.requests[0].request_id

        def synchronous() -> str:
            with FedsvcClient(target) as client:
                return client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL).delivery_id

        servicer.requests.clear()
        assert await asyncio.to_thread(synchronous) == "1-1"
        assert len(servicer.requests) == 3
        assert len({request.request_id for request in servicer.requests}) == 1


async def test_two_calls_have_two_names_unless_the_caller_names_them() -> None:
    servicer = Failing()
    async with served(servicer) as target, AsyncFedsvcClient(target) as client:
        for name in (None, None, "mine"):
            await client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL, request_id=name)
    first, second, third = (request.request_id for request in servicer.requests)
    assert first != second
    assert third == "mine"


async def test_trying_ends_with_the_deadline_and_the_error_names_the_call() -> None:
    servicer = Failing(failures=1000)
    async with served(servicer) as target, AsyncFedsvcClient(target, timeout=0.5) as client:
        with pytest.raises(Unavailable, match="not now") as refused:
            await client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL)
    assert refused.value.request_id == servicer.requests[0].request_id
    assert 2 <= len(servicer.requests) <= 20


async def test_a_server_that_hangs_is_given_up_at_the_deadline() -> None:
    async with served(Failing(hangs=True)) as target, AsyncFedsvcClient(target) as client:
        with pytest.raises(DeadlineExceeded):
            await client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL, timeout=0.3)


async def test_what_the_server_told_before_the_deadline_cut_a_repetition_off_is_told() -> None:
    servicer = Failing(failures=1, hangs=True)

    def synchronous(target: str) -> None:
        with FedsvcClient(target, timeout=0.5) as client:
            client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL)

    async with served(servicer) as target, AsyncFedsvcClient(target, timeout=0.5) as client:
        with pytest.raises(Unavailable, match="not now"):
            await client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL)
        assert len(servicer.requests) == 2
        servicer.requests.clear()
        with pytest.raises(Unavailable, match="not now"):
            await asyncio.to_thread(synchronous, target)
        assert len(servicer.requests) == 2


@pytest.mark.parametrize("activity", [b'{"a": 1}', '{"a":  "\xfc"}'])
async def test_bytes_and_text_travel_as_they_are(activity: bytes | str) -> None:
    servicer = Failing()
    async with served(servicer) as target, AsyncFedsvcClient(target) as client:
        await client.queue_activity(activity, "https://a.example/inbox", **CALL)
    assert servicer.requests[0].activity == (activity if isinstance(activity, bytes) else activity.encode())


@pytest.mark.parametrize("activity", [ACTIVITY, MappingProxyType(ACTIVITY)])
async def test_a_mapping_travels_as_compact_json_in_utf_8(activity: Mapping[str, Any]) -> None:
    servicer = Failing()
    async with served(servicer) as target, AsyncFedsvcClient(target) as client:
        await client.queue_activity(activity, "https://a.example/inbox", **CALL)
    assert servicer.requests[0].activity.endswith('"object":"ü"}'.encode())
    assert b": " not in servicer.requests[0].activity


class Large(Failing):
    """Answers with more than the 4 MiB that gRPC takes unless it is told."""

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, context: Any) -> Any:
        large = types_pb2.Delivery(response_snippet="x" * 5_000_000)
        return pb.ListDeliveriesResponse(deliveries=[large])


async def test_an_answer_may_be_large() -> None:
    def synchronous(target: str) -> DeliveryPage:
        with FedsvcClient(target) as client:
            return client.list_deliveries("a")

    async with served(Large()) as target, AsyncFedsvcClient(target) as client:
        for page in (await client.list_deliveries("a"), await asyncio.to_thread(synchronous, target)):
            assert len(page.deliveries[0].response_snippet) == 5_000_000


async def test_a_closed_client_cannot_be_used() -> None:
    client, other = FedsvcClient("127.0.0.1:1"), AsyncFedsvcClient("127.0.0.1:1")
    client.close()
    await other.close()
    with pytest.raises(ClientClosed, match="closed"):
        client.get_queue_stats()
    with pytest.raises(ClientClosed, match="closed"):
        next(iter(client.watch_outcomes()))
    with pytest.raises(ClientClosed, match="closed"):
        await other.get_queue_stats()
    with pytest.raises(ClientClosed, match="closed"):
        await anext(other.watch_outcomes())


class Endless(Failing):
    """Never answers, but says when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def QueueActivity(self, request: Any, context: Any) -> Any:
        self.asked.set()
        await asyncio.Event().wait()

    async def WatchOutcomes(self, request: Any, context: Any) -> Any:
        self.asked.set()
        await asyncio.Event().wait()
        yield


@pytest.mark.parametrize("streams", [False, True])
async def test_what_is_under_way_ends_with_the_client_that_is_closed(streams: bool) -> None:
    servicer = Endless()
    async with served(servicer) as target:
        client = AsyncFedsvcClient(target, timeout=60)
        calling: Any = (
            anext(client.watch_outcomes())
            if streams
            else client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL)
        )
        task = asyncio.ensure_future(calling)
        await servicer.asked.wait()
        await client.close()
        with pytest.raises(ClientClosed):
            await task

        servicer.asked.clear()
        blocking = FedsvcClient(target, timeout=60)

        def call() -> Any:
            if streams:
                return next(iter(blocking.watch_outcomes()))
            return blocking.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL)

        thread = asyncio.create_task(asyncio.to_thread(call))
        await servicer.asked.wait()
        blocking.close()
        with pytest.raises(ClientClosed):
            await thread


@pytest.mark.parametrize("streams", [False, True])
async def test_a_task_that_is_cancelled_stays_so_although_its_client_is_closed(streams: bool) -> None:
    servicer = Endless()
    async with served(servicer) as target:
        client = AsyncFedsvcClient(target, timeout=60)

        async def call() -> Any:
            if streams:
                return await anext(client.watch_outcomes())
            return await client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL)

        task = asyncio.create_task(call())
        await servicer.asked.wait()
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_a_client_that_is_closed_while_a_thread_connects_keeps_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, made = FedsvcClient("127.0.0.1:1"), []

    class Late(Connection):
        def __init__(self, *how: Any) -> None:
            client.close()
            super().__init__(*how)
            made.append(self)

    monkeypatch.setattr("fedsvc_client._connections.Connection", Late)
    with pytest.raises(ClientClosed):
        client.get_queue_stats()
    with pytest.raises(ValueError, match="closed channel"):
        made[0].operations.GetQueueStats(operations_pb.GetQueueStatsRequest())


async def test_a_channel_that_is_closed_while_a_thread_is_about_to_call_is_a_closed_client() -> None:
    client = FedsvcClient("127.0.0.1:1")
    held = client._connection()
    client.close()
    client._connection = lambda: held  # type: ignore[method-assign]
    with pytest.raises(ClientClosed):
        client.get_queue_stats()
    with pytest.raises(ClientClosed):
        next(iter(client.watch_outcomes()))


class Quiet(Failing):
    """Tells where a watcher begins, then nothing; breaks when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.cursors: list[str] = []
        self.broken = asyncio.Event()

    async def WatchOutcomes(self, request: pb.WatchOutcomesRequest, context: Any) -> Any:
        self.cursors.append(request.cursor)
        yield pb.WatchOutcomesResponse(cursor=str(len(self.cursors)), heartbeat=True)
        if len(self.cursors) == 1:
            await self.broken.wait()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Cancelling all calls")


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
async def test_a_stream_that_was_quiet_for_longer_than_the_timeout_is_made_again(kind: Any) -> None:
    servicer = Quiet()
    async with served(servicer) as target:
        asyncio.get_running_loop().call_later(1.0, servicer.broken.set)

        async def awaited() -> list[str]:
            async with AsyncFedsvcClient(target, timeout=0.5) as client:
                watched = client.watch_outcomes(heartbeats=True)
                return [(await anext(watched)).cursor for _ in range(2)]

        def synchronous() -> list[str]:
            with FedsvcClient(target, timeout=0.5) as client:
                watched = iter(client.watch_outcomes(heartbeats=True))
                return [next(watched).cursor for _ in range(2)]

        told = await (awaited() if kind is AsyncFedsvcClient else asyncio.to_thread(synchronous))
    assert told == ["1", "2"]
    assert servicer.cursors == ["", "1"]


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
async def test_a_server_that_lets_us_in_and_is_silent_is_given_up_within_the_timeout(kind: Any) -> None:
    met: list[Any] = []
    silent = await asyncio.start_server(lambda *streams: met.append(streams), "127.0.0.1", 0)
    target = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"

    async def awaited() -> None:
        async with AsyncFedsvcClient(target, timeout=1.2) as client:
            await anext(client.watch_outcomes())

    def synchronous() -> None:
        with FedsvcClient(target, timeout=1.2) as client:
            next(iter(client.watch_outcomes()))

    # gRPC's own patience of 20 s is spent before any second connection.
    async with silent, asyncio.timeout(15):
        with pytest.raises(Unavailable, match="before receiving SETTINGS"):
            await (awaited() if kind is AsyncFedsvcClient else asyncio.to_thread(synchronous))
        for _, writer in met:
            writer.close()


FORKS = """
import os, signal, sys, threading
from fedsvc_client import FedsvcClient, _sync

class Slow(_sync.Connection):
    def __init__(self, *how):
        begun.set()
        forked.wait(10)
        super().__init__(*how)

begun, forked = threading.Event(), threading.Event()
client, quick = FedsvcClient(sys.argv[1], timeout=5), _sync.Connection
_sync.Connection = Slow
thread = threading.Thread(target=client.get_queue_stats)
thread.start()
begun.wait(10)
if child := os.fork():
    forked.set()
    thread.join(10)
    sys.exit(os.waitpid(child, 0)[1])
_sync.Connection = quick
signal.alarm(10)
client.get_queue_stats()
os._exit(0)
"""


def test_a_process_may_fork_while_a_thread_makes_the_first_connection(script: Scripted) -> None:
    command = [sys.executable, "-c", FORKS, script.target]
    assert subprocess.run(command, timeout=30).returncode == 0


FORKS_LATER = """
import os, signal, sys
from fedsvc_client import FedsvcClient

client = FedsvcClient(sys.argv[1], timeout=5)
client.get_queue_stats()
for calls in (True, False):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, calls
        client.get_queue_stats()
    else:
        signal.alarm(10)
        if calls:
            client.get_queue_stats()
        client.close()
        os._exit(0)
"""


def test_what_a_forked_process_does_with_a_client_that_was_used_before_is_nothing_to_the_other(
    script: Scripted,
) -> None:
    command = [sys.executable, "-c", FORKS_LATER, script.target]
    assert subprocess.run(command, timeout=30).returncode == 0


FORKS_WITH_ASYNCIO = """
import asyncio, os, signal, sys
from fedsvc_client import AsyncFedsvcClient, FedsvcClient, FedsvcError

async def call(client, closes=False):
    await client.get_queue_stats()
    if closes:
        await client.close()

def in_a_child(work):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, work.__name__
        return
    signal.alarm(10)
    work()
    os._exit(0)

def refused():
    for client in (kept, AsyncFedsvcClient(sys.argv[1])):
        try:
            asyncio.run(call(client))
        except FedsvcError as error:
            assert "forked" in str(error)
        else:
            os._exit(1)
    FedsvcClient(sys.argv[1], timeout=5).get_queue_stats()

def well():
    asyncio.run(call(AsyncFedsvcClient(sys.argv[1], timeout=5)))

asyncio.run(call(AsyncFedsvcClient(sys.argv[1], timeout=5)))
in_a_child(well)
kept = AsyncFedsvcClient(sys.argv[1], timeout=5)
asyncio.run(call(kept))
in_a_child(refused)
asyncio.run(call(kept, closes=True))
in_a_child(well)
"""


def test_a_process_that_forks_while_a_client_of_asyncio_is_open_is_told_so_and_does_not_crash(
    script: Scripted,
) -> None:
    command = [sys.executable, "-c", FORKS_WITH_ASYNCIO, script.target]
    assert subprocess.run(command, timeout=60).returncode == 0
