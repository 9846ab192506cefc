"""The client against a server that fails in the ways that servers do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from fedsvc_client import (
    TLS,
    AsyncFedsvcClient,
    ClientClosed,
    Configuration,
    ConfigurationError,
    DeadlineExceeded,
    DeliveryState,
    FedsvcClient,
    InvalidRequest,
    Unavailable,
)
from fedsvc_client._connections import Connection
from servers.certificates import authority
from servers.scripted import Scripted
from servers.unbuilt import unbuilt

from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import operations_service_pb2 as operations_pb
from fedsvc.v1 import types_pb2
from fedsvc.v1.delivery_service_pb2_grpc import add_DeliveryServiceServicer_to_server

ACTIVITY = {"id": "https://me.example/1", "type": "Like", "actor": "https://me.example/u/a", "object": "ü"}
CALL: dict[str, Any] = {"private_key": "pem", "key_id": "https://me.example/u/a#main-key"}


class Failing:
    """Answers UNAVAILABLE so many times, then takes the activity, or never answers."""

    def __init__(self, failures: int = 0, *, hangs: bool = False) -> None:
        self.failures = failures
        self.hangs = hangs
        self.requests: list[pb.QueueActivityRequest] = []

    def __getattr__(self, name: str) -> Any:
        """What else the service has."""
        if not name[0].isupper():
            raise AttributeError(name)
        return unbuilt

    async def QueueActivity(self, request: pb.QueueActivityRequest, context: Any) -> pb.QueueActivityResponse:
        self.requests.append(request)
        if len(self.requests) <= self.failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        if self.hangs:
            await asyncio.sleep(60)
        return pb.QueueActivityResponse(delivery=types_pb2.Delivery(delivery_id="1-1"))


@asynccontextmanager
async def served(servicer: Any) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_DeliveryServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


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


async def test_a_dict_travels_as_compact_json_in_utf_8() -> None:
    servicer = Failing()
    async with served(servicer) as target, AsyncFedsvcClient(target) as client:
        await client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL)
    assert servicer.requests[0].activity.endswith('"object":"ü"}'.encode())
    assert b": " not in servicer.requests[0].activity


@pytest.mark.parametrize(
    "how",
    [{"priority": "soon"}, {"activity": {"x": float("nan")}}, {"activity": 5}],
    ids=lambda how: next(iter(how)),
)
async def test_what_the_client_itself_can_tell_is_refused_without_a_call(how: dict[str, Any]) -> None:
    servicer = Failing()
    async with served(servicer) as target, AsyncFedsvcClient(target) as client:
        with pytest.raises(InvalidRequest):
            await client.queue_activity(
                how.get("activity", ACTIVITY), "https://a.example/inbox", **CALL, priority=how.get("priority")
            )
    assert not servicer.requests


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ca_file": "/nonexistent"}, "/nonexistent cannot be read"),
        ({"ca_file": "/dev/null"}, "/dev/null holds nothing in PEM"),
        ({"cert_file": __file__, "key_file": __file__}, "holds nothing in PEM"),
        ({"cert_file": __file__}, "belong together"),
        ({"key_file": __file__}, "belong together"),
    ],
)
async def test_files_of_tls_that_cannot_be_used_are_named(files: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        await AsyncFedsvcClient("127.0.0.1:1", timeout=1, tls=TLS(**files)).get_queue_stats()
    with pytest.raises(ConfigurationError, match=words):
        FedsvcClient("127.0.0.1:1", timeout=1, tls=TLS(**files)).get_queue_stats()


def test_a_certificate_whose_key_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = authority()
    cert, other = issuer.certify("me"), issuer.certify("another")
    locked = tmp_path / "locked.pem"
    key = load_pem_private_key(cert.read_bytes(), None)
    secret = BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    monkeypatch.setenv("FEDSVC_TARGET", "127.0.0.1:1")
    monkeypatch.setenv("FEDSVC_CLIENT_CERT", str(cert))
    for file, words in ((locked, f"{locked} is encrypted"), (other, f"{cert} does not go with {other}")):
        with pytest.raises(ConfigurationError, match=words):
            FedsvcClient("127.0.0.1:1", timeout=1, tls=TLS(None, cert, file)).get_queue_stats()
        monkeypatch.setenv("FEDSVC_CLIENT_KEY", str(file))
        with pytest.raises(ConfigurationError, match=f"FEDSVC_CLIENT_KEY: {words}"):
            Configuration.read()


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

    monkeypatch.setattr("fedsvc_client._sync.Connection", Late)
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


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
@pytest.mark.parametrize(
    ("target", "token", "wrong"),
    [
        ("", None, "the target is"),
        (" ", None, "the target is"),
        ("h:1", "two\nlines", "this is no token"),
        ("h:1", "\xfc", "this is no token"),
    ],
)
def test_a_target_or_token_that_is_none_is_refused_at_once(
    kind: Any, target: str, token: str | None, wrong: str
) -> None:
    with pytest.raises(ValueError, match=wrong):
        kind(target, token)


async def test_a_token_may_come_with_the_end_of_its_line() -> None:
    servicer = Failing()
    shown: list[Any] = []

    async def told(request: Any, context: Any) -> Any:
        shown.extend(value for name, value in context.invocation_metadata() if name == "authorization")
        return pb.QueueActivityResponse()

    servicer.QueueActivity = told  # type: ignore[method-assign]
    async with served(servicer) as target, AsyncFedsvcClient(target, "word\n") as client:
        await client.queue_activity(ACTIVITY, "https://a.example/inbox", **CALL)
    assert shown == ["Bearer word"]


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


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(depth):
        made = {"object": made}
    return made


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("activity", {"activity": '{"id":"\ud800"}'}),
        ("activity", {"activity": {"id": "\ud800"}}),
        ("activity", {"activity": nested(100_000)}),
        ("destination", {"destination": "https://a.example/\ud800"}),
        ("destination", {"destination": None}),
        ("private_key", {"private_key": b"\xff"}),
        ("private_key", {"private_key": 5}),
        ("key_id", {"key_id": "https://me.example/\ud800"}),
        ("key_id", {"key_id": 5}),
        ("ordering_key", {"ordering_key": 5}),
        ("supersede_key", {"supersede_key": "\ud800"}),
        ("content_type", {"content_type": b"text/plain"}),
        ("proof_key", {"proof_key": 5}),
        ("proof_key_id", {"proof_key_id": 5}),
        ("not_before", {"not_before": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))}),
        ("request_id", {"request_id": 5}),
        ("not_before", {"not_before": "2026-01-01"}),
        ("expire_time", {"expire_time": 5}),
    ],
)
def test_what_cannot_be_sent_is_named_before_anything_is_sent(named: str, changes: dict[str, Any]) -> None:
    call = {"activity": ACTIVITY, "destination": "https://a.example/inbox", **CALL} | changes
    with FedsvcClient("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match=named):
        client.queue_activity(**call)


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ({"destination": "https://a.example/\ud800"}, "items.0..destination"),
        ({"destination": "https://a.example/inbox", "prio": "urgent"}, "items.0. has prio"),
        ({"destination": "https://a.example/inbox", "request_id": 5}, "items.0..request_id"),
    ],
)
def test_an_item_that_cannot_be_sent_is_named(item: dict[str, Any], named: str) -> None:
    with FedsvcClient("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match=named):
        client.queue_activities([{"activity": ACTIVITY} | item], **CALL)


def test_an_item_that_is_none_is_named() -> None:
    item: Any = (ACTIVITY, "https://a.example/inbox")
    with FedsvcClient("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match=r"items.0. is tuple"):
        client.queue_activities([item], **CALL)


@pytest.mark.parametrize(
    "inboxes",
    ["https://a.example/inbox", b"x", None, ["https://a.example/inbox", None], ["https://a.example/\udfff"]],
)
def test_inboxes_that_are_none_are_refused_before_anything_is_sent(inboxes: Any) -> None:
    with FedsvcClient("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match="inboxes"):
        client.fan_out(ACTIVITY, inboxes, **CALL)


class Asked(Failing):
    """Keeps what it is asked beside activities."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    async def WatchOutcomes(self, request: pb.WatchOutcomesRequest, context: Any) -> Any:
        self.asked.append(request)
        yield pb.WatchOutcomesResponse(cursor="1", heartbeat=True)

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, context: Any) -> Any:
        self.asked.append(request)
        return pb.ListDeliveriesResponse()

    async def CancelDeliveries(self, request: pb.CancelDeliveriesRequest, context: Any) -> Any:
        self.asked.append(request)
        return pb.CancelDeliveriesResponse()


async def test_a_single_text_where_several_may_be_given_is_not_taken_for_its_characters() -> None:
    servicer = Asked()
    async with served(servicer) as target, AsyncFedsvcClient(target) as client:
        chosen = {"event_types": "OUTCOME", "states": "DEAD", "activity_types": "Like", "hosts": "a.example"}
        await anext(client.watch_outcomes(heartbeats=True, **chosen))
        await client.list_deliveries("a", states=DeliveryState.DEAD)
        [_ async for _ in client.iterate_deliveries("a", states="dead")]
        await client.cancel_deliveries("1-1")
    watch, once, again, cancel = servicer.asked
    dead = [types_pb2.DELIVERY_STATE_DEAD]
    assert (watch.event_types, watch.states) == ([pb.EVENT_TYPE_OUTCOME], dead)
    assert (watch.activity_types, watch.hosts) == (["Like"], ["a.example"])
    assert (once.states, again.states) == (dead, dead)
    assert cancel.deliveries.delivery_ids == ["1-1"]


@pytest.mark.parametrize("selectors", [{}, {"delivery_ids": ["1-1"], "host": "a.example"}])
def test_deliveries_are_cancelled_by_one_selector(selectors: dict[str, Any]) -> None:
    with FedsvcClient("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match="give one of"):
        client.cancel_deliveries(**selectors)


#: forks while a thread makes the client's first connection; the child calls, within 10 s
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
