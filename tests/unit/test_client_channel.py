"""When the client tries again, and how it reaches its server. Nothing is sent."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fedsvc_client import (
    TLS,
    AsyncFedsvcClient,
    Configuration,
    ConfigurationError,
    DeadlineExceeded,
    FedsvcClient,
    InvalidRequest,
    Unavailable,
    _channel,
    _sync,
)
from fedsvc_client._channel import (
    HEALTH_SERVICE,
    LONGEST_PAUSE,
    Attempts,
    Remakings,
    channel_options,
    channel_target,
    channel_tls,
)
from fedsvc_client._proto import delivery_service_pb2 as pb
from grpc import RpcError, StatusCode
from grpc.aio import AioRpcError, Metadata
from servers.certificates import authority


class Clock:
    """Stands still until it is told to go on; chance is what it is told to be."""

    def __init__(self) -> None:
        self.now, self.chance = 0.0, 1.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def random(self) -> float:
        return self.chance

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def sleep_of_asyncio(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_channel, "time", clock)
    monkeypatch.setattr(_channel, "random", clock)
    monkeypatch.setattr(_sync, "time", clock)
    monkeypatch.setattr("asyncio.sleep", clock.sleep_of_asyncio)
    return clock


def fail(attempts: Attempts, code: StatusCode, told: str = "") -> float:
    return attempts.pause_after(code, told, (), "name")


def test_pauses_double_up_to_the_longest_and_end_when_there_is_no_time_for_another(clock: Clock) -> None:
    for seconds in (1.0, 1.6):
        pauses = Attempts(seconds).pauses()
        assert list(islice(pauses, 9)) == pytest.approx([0.1, 0.2, 0.4, 0.8])
    pauses = Attempts(60.0).pauses()
    assert list(islice(pauses, 7)) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    clock.chance = 0.0
    assert next(pauses) == pytest.approx(LONGEST_PAUSE / 2), "each from the half of it on, by chance"
    clock.now += 60
    assert next(pauses, None) is None


def test_what_could_not_be_reached_is_tried_again_and_what_is_refused_is_not(clock: Clock) -> None:
    attempts = Attempts(5.0)
    for code in (StatusCode.UNAVAILABLE, StatusCode.ABORTED):
        assert fail(attempts, code) > 0
    with pytest.raises(InvalidRequest, match="is wrong") as refused:
        fail(attempts, StatusCode.INVALID_ARGUMENT, "is wrong")
    assert refused.value.request_id == "name"
    clock.now += 6
    assert attempts.left == 0.0
    with pytest.raises(Unavailable, match="the last"):
        fail(attempts, StatusCode.UNAVAILABLE, "the last")


def test_a_call_that_was_cut_off_is_told_as_what_it_was_told_before(clock: Clock) -> None:
    with pytest.raises(DeadlineExceeded):
        fail(Attempts(5.0), StatusCode.DEADLINE_EXCEEDED)
    attempts = Attempts(5.0)
    fail(attempts, StatusCode.UNAVAILABLE, "not now")
    with pytest.raises(Unavailable, match="not now"):
        fail(attempts, StatusCode.DEADLINE_EXCEEDED)


def test_a_stream_has_its_whole_time_each_time_that_it_breaks(clock: Clock) -> None:
    remakings = Remakings(5.0)

    def breaks() -> float:
        return remakings.pause_after(StatusCode.UNAVAILABLE, "gone", ())

    assert breaks() == pytest.approx(0.1)
    clock.now += 4.9
    with pytest.raises(Unavailable):
        breaks()
    assert remakings.pause_after_end() == LONGEST_PAUSE, "one that ends in order is no failure"
    remakings.works()
    clock.now += 3600
    assert breaks() == pytest.approx(0.1)
    assert remakings.pause_after_end() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("target", "watched"),
    [
        ("127.0.0.1:1", False),
        ("fedsvc:50051", False),
        ("unix:/run/fedsvc", False),
        ("dns:///fedsvc:50051", True),
        ("10.0.0.1:1,10.0.0.2:1", True),
        ("[::1]:1,[::2]:1", True),
    ],
)
def test_health_is_watched_where_there_may_be_several_servers(target: str, watched: bool) -> None:
    options = dict(channel_options(channel_target(target), 10.0))
    config = json.loads(options["grpc.service_config"])
    assert config.get("healthCheckConfig") == ({"serviceName": HEALTH_SERVICE} if watched else None)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("https://fedsvc.example:50051", "HOST:PORT, without https://"),
        ("grpc://fedsvc:50051/", "HOST:PORT, without grpc://"),
        ("fedsvc:99999", "port is no number from 1 to 65535: '99999'"),
        ("fedsvc:0", "port is no number"),
        ("fedsvc:", "port is no number"),
        ("[::1]:grpc", "port is no number"),
        ("10.0.0.1:1,10.0.0.2:65536", "port is no number"),
    ],
)
def test_a_target_that_grpc_would_take_for_another_is_refused(target: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        FedsvcClient(target)


@pytest.mark.parametrize(
    "target",
    ["fedsvc", "fedsvc:65535", "fedsvc: 1", "fedsvc:https", "::1", "[::1]", "[::1]:1", "dns://1.1.1.1/h:1"],
)
def test_a_target_that_grpc_knows_stays_as_it_is(target: str) -> None:
    assert channel_target(target) == target


def test_authorities_are_certificates(tmp_path: Path) -> None:
    junk, key = tmp_path / "junk.pem", tmp_path / "key.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    for file in (junk, key):
        with pytest.raises(ConfigurationError, match=f"{file} holds no certificates that can be read"):
            FedsvcClient("h:1", tls=TLS(file)).get_queue_stats()
        environ = {"FEDSVC_TARGET": "h:1", "FEDSVC_TLS_CA": str(file)}
        with pytest.raises(ConfigurationError, match=f"FEDSVC_TLS_CA: {file} holds no certificates"):
            Configuration.read(environ)
    junk.write_bytes(authority("of a server").file.read_bytes())
    assert Configuration.read({"FEDSVC_TARGET": "h:1", "FEDSVC_TLS_CA": str(junk)}).tls == TLS(str(junk))


@pytest.mark.parametrize(
    ("timeout", "milliseconds"), [(0.1, 1000), (2.0, 1000), (10.0, 5000), (60.0, 20_000), (3.0, 1500)]
)
def test_connecting_leaves_time_for_another_try(timeout: float, milliseconds: int) -> None:
    assert dict(channel_options("h:1", timeout))["grpc.min_reconnect_backoff_ms"] == milliseconds


@pytest.mark.parametrize(
    ("given", "meant"), [(None, None), (False, None), (True, TLS()), (TLS("ca"), TLS("ca"))]
)
def test_what_tls_means(given: Any, meant: TLS | None) -> None:
    assert channel_tls(given) == meant


class Away(RpcError):
    """As a call of a client without an event loop ends."""

    def code(self) -> StatusCode:
        return StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "not now"

    def trailing_metadata(self) -> Any:
        return None


class Server:
    """Is away for the first two calls; of its streams each gives one message and ends."""

    def __init__(self, *, awaited: bool) -> None:
        self.awaited = awaited
        self.calls = 0
        #: of the streams
        self.begun_at: list[str] = []

    def GetDelivery(self, request: Any, timeout: float, metadata: Any) -> Any:
        self.calls += 1

        def answer() -> pb.GetDeliveryResponse:
            if self.calls > 2:
                return pb.GetDeliveryResponse()
            raise AioRpcError(StatusCode.UNAVAILABLE, Metadata(), Metadata()) if self.awaited else Away

        async def later() -> pb.GetDeliveryResponse:
            return answer()

        return later() if self.awaited else answer()

    def WatchOutcomes(self, request: pb.WatchOutcomesRequest, metadata: Any) -> Any:
        self.begun_at.append(request.cursor)
        message = pb.WatchOutcomesResponse(cursor=str(len(self.begun_at)), heartbeat=True)

        class Stream:
            def __iter__(self) -> Iterator[Any]:
                yield message

            async def __aiter__(self) -> AsyncIterator[Any]:
                yield message

            def cancel(self) -> None:
                pass

        return Stream()


@pytest.mark.parametrize("kind", [FedsvcClient, AsyncFedsvcClient])
async def test_there_is_a_pause_before_each_repetition_of_calls_and_streams(kind: Any, clock: Clock) -> None:
    client, server = kind("h:1"), Server(awaited=kind is AsyncFedsvcClient)
    client._connection = lambda: SimpleNamespace(delivery=server)
    if kind is AsyncFedsvcClient:
        await client.get_delivery("1-1")
    else:
        client.get_delivery("1-1")
    assert (server.calls, client.retries) == (3, 2)
    assert clock.slept == pytest.approx([0.1, 0.2])
    clock.slept.clear()
    watched = client.watch_outcomes(heartbeats=True)
    for _ in range(3):
        await anext(watched) if kind is AsyncFedsvcClient else next(watched)
    assert server.begun_at == ["", "1", "2"]
    assert clock.slept == pytest.approx([0.1, 0.1]), "each stream had worked"
    assert client.retries == 4


def test_each_event_loop_has_a_connection_of_its_own() -> None:
    client = AsyncFedsvcClient("h:1")

    async def connection() -> Any:
        found = client._connection()
        assert client._connection() is found
        return found

    async def last() -> Any:
        found = await connection()
        await client.close()
        return found

    assert asyncio.run(connection()) is not asyncio.run(last())


def test_loops_that_run_in_turns_keep_their_connections_and_one_that_is_closed_leaves_none() -> None:
    client = AsyncFedsvcClient("h:1")
    loops = [asyncio.new_event_loop() for _ in range(2)]

    async def connection() -> Any:
        return client._connection()

    of_loops = [loop.run_until_complete(connection()) for loop in loops]
    assert [loop.run_until_complete(connection()) for loop in loops] == of_loops
    left = weakref.ref(of_loops.pop(0))
    loops[0].close()
    third = asyncio.run(connection())
    gc.collect()
    assert left() is None
    assert loops[1].run_until_complete(connection()) is of_loops[0] is not third
    loops[1].run_until_complete(client.close())
    loops[1].close()
