"""Callers that hang or bring too much while their request is on its way: the others have their places."""

from __future__ import annotations

import asyncio
import gc
import logging
import struct
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servers.front import Front, front

from fedsvc.config import Settings
from fedsvc.server import reception
from fedsvc.server.caller import Caller
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.v1 import operations_service_pb2 as operations_pb

CALLERS = {name: new_token() for name in ("ada", "bob")}
STATS = "/fedsvc.v1.OperationsService/GetQueueStats"
WATCH = "/fedsvc.v1.OperationsService/WatchQueueStats"
CHECK = "/grpc.health.v1.Health/Check"
#: calls at a time of all callers
PLACES = 40


@pytest.fixture
async def server(environment: dict[str, str]) -> AsyncIterator[Front]:
    tokens = " ".join(entry_text(Caller(name), token) for name, token in CALLERS.items())
    more = {"FEDSVC_MAX_CALLS": str(PLACES), "FEDSVC_TOKENS": tokens}
    async with front(Settings.from_environment(environment | more)) as running:
        yield running


def shown(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {CALLERS[name]}"),) if name else ()


@asynccontextmanager
async def hanging(server: Front, method: str, name: str, calls: int) -> AsyncIterator[list[Any]]:
    """Calls that have begun and bring no request; over a connection of their own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(server.target, options=options) as channel:
        begun: list[Any] = [channel.stream_unary(method)(metadata=shown(name)) for _ in range(calls)]
        await asyncio.gather(*(call.wait_for_connection() for call in begun), return_exceptions=True)
        try:
            yield begun
        finally:
            for call in begun:
                call.cancel()


async def ask(server: Front, name: str) -> int:
    request = operations_pb.GetQueueStatsRequest()
    response = await server.operations.GetQueueStats(request, metadata=shown(name), timeout=5)
    return int(response.accepted)


async def codes(calls: list[Any]) -> set[grpc.StatusCode]:
    async with asyncio.timeout(10):
        return {await call.code() for call in calls}


async def test_strangers_who_send_no_request_take_nobodys_place(server: Front) -> None:
    async with hanging(server, STATS, "", PLACES) as calls:
        assert await codes(calls) == {grpc.StatusCode.UNAUTHENTICATED}
        assert await ask(server, "ada") == 0


async def test_what_a_stranger_sends_is_refused_before_it_is_there(server: Front) -> None:
    """A request that would never end."""
    ended = threading.Event()

    def request() -> Iterator[bytes]:
        yield b"\x0a"
        ended.wait(30)

    # Not by asyncio: if the answer comes before the byte has left, its client says INTERNAL, of its own.
    channel: Any
    with grpc.insecure_channel(server.target) as channel:
        call = channel.stream_unary(STATS).future(request(), timeout=10)
        try:
            assert await asyncio.to_thread(call.code) is grpc.StatusCode.UNAUTHENTICATED
        finally:
            ended.set()


async def test_one_caller_may_have_half_of_the_places(server: Front) -> None:
    async with hanging(server, STATS, "bob", PLACES) as calls:
        ending = [asyncio.create_task(call.code()) for call in calls]
        refused = 0
        while refused < PLACES // 2:
            done, _ = await asyncio.wait(ending, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            assert {task.result() for task in done} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            refused += len(done)
            ending = [task for task in ending if not task.done()]
        assert await ask(server, "ada") == 0
        with pytest.raises(grpc.aio.AioRpcError, match="bob has"):
            await ask(server, "bob")
        assert len(ending) == PLACES // 2
    await until(server, "bob", "0")  # what has ended leaves its place


@pytest.mark.parametrize("method", [STATS, WATCH, CHECK])
async def test_a_request_that_does_not_come_is_given_up(
    server: Front, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "PATIENCE_S", 0.05)
    monkeypatch.setattr(reception, "STRANGERS_PATIENCE_S", 0.05)
    async with hanging(server, method, "" if method == CHECK else "ada", 3) as calls:
        assert await codes(calls) == {grpc.StatusCode.INVALID_ARGUMENT}
        assert "did not come within 0.05 s" in await calls[0].details()
    assert await ask(server, "ada") == 0


@pytest.mark.parametrize("method", [STATS, WATCH, CHECK])
async def test_a_call_that_ends_without_a_request_is_told_so(server: Front, method: str) -> None:
    channel: Any = server.channel
    call = channel.stream_unary(method)(iter(()), metadata=shown("ada"))
    assert await codes([call]) == {grpc.StatusCode.INVALID_ARGUMENT}
    assert "is missing" in await call.details()


async def test_health_answers_however_many_strangers_hang(server: Front) -> None:
    stub: Any = health_pb2_grpc.HealthStub(server.channel)
    asked = health_pb2.HealthCheckRequest(service="fedsvc.v1.KeyService")
    async with hanging(server, CHECK, "", reception.MOST_STRANGERS):
        for _ in range(5):
            answer = await stub.Check(asked, timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert (await stub.Check(asked, timeout=5)).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("method", [STATS, WATCH, CHECK])
async def test_a_refused_call_leaves_nothing_of_its_request_in_memory(server: Front, method: str) -> None:
    """Also if nobody looks for cycles meanwhile: large requests are few, and few bring no such look about."""
    channel: Any = server.channel
    garbage, calls = b"\xff" * 4_000_000, 5
    gc.disable()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(calls):
            call = channel.stream_unary(method)(iter((garbage,)), metadata=shown("ada"))
            assert await codes([call]) == {grpc.StatusCode.INVALID_ARGUMENT}
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert after - before < len(garbage) * 1.5  # the last one may be on its way out


@pytest.mark.parametrize(
    ("method", "name", "most"), [(STATS, "ada", 65_536), (WATCH, "ada", 65_536), (CHECK, "", 4096)]
)
async def test_a_request_that_brings_no_activity_is_small(
    server: Front, method: str, name: str, most: int
) -> None:
    """Read, one of 30 MB that is nothing but fields took minutes, in which nobody else was served."""
    channel: Any = server.channel
    for size, end in ((most, None), (most + 1, grpc.StatusCode.INVALID_ARGUMENT)):
        # A field that no method knows, with its length in three bytes.
        text = b"x" * (size - 5)
        length = bytes([128 | len(text) & 127, 128 | len(text) >> 7 & 127, len(text) >> 14])
        request = b"\x92\x3f" + length + text
        call = channel.stream_stream(method)(iter((request,)), metadata=shown(name))
        if end is None:
            assert await call.read() is not grpc.aio.EOF
            call.cancel()
        else:
            assert await codes([call]) == {end}
            assert await call.details() == f"request: has {size} bytes; {most} are allowed"


@pytest.mark.parametrize("method", ["QueueActivities", "FanOutActivity"])
async def test_a_request_of_millions_of_fields_is_not_read(server: Front, method: str) -> None:
    """Read, 36 MB of empty ones take up 1.8 GB."""
    channel: Any = server.channel
    request = b"\x0a\x00" * 200_000 + b"\x12\x00" * 200_000
    call = channel.unary_unary(f"/fedsvc.v1.DeliveryService/{method}")(request, metadata=shown("ada"))
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await call.details() == "request: has more than 101000 fields"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def head(method: str, name: str, *more: tuple[str, bytes]) -> bytes:
    """The headers of a call, nothing compressed."""
    fields = [
        (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "x"),
        ("content-type", "application/grpc"), ("te", "trailers"), *shown(name),
    ]  # fmt: skip
    return b"".join(
        b"\0" + bytes([len(key)]) + key.encode() + bytes([len(value)]) + value
        for key, value in [*((key, value.encode()) for key, value in fields), *more]
    )


async def came(reader: asyncio.StreamReader, kind: int, flags: int) -> None:
    """Until the server has sent such a frame."""
    async with asyncio.timeout(10):
        found = (-1, -1)
        while found != (kind, flags):
            told = await reader.readexactly(9)
            found = told[3], told[4]
            await reader.readexactly(int.from_bytes(told[:3]))


async def until(server: Front, name: str, told: str) -> None:
    """A caller is answered so, or refused with words that begin so."""
    async with asyncio.timeout(10):
        while True:
            try:
                found = str(await ask(server, name))
            except grpc.aio.AioRpcError as error:
                found = error.details() or ""
            if found.startswith(told):
                return


@asynccontextmanager
async def taking_nothing(server: Front, method: str, name: str, calls: int) -> AsyncIterator[None]:
    """Calls with empty requests whose answers the caller has no room for, over one connection."""
    host, _, port = server.target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    no_room = frame(4, 0, 0, struct.pack(">HI", 4, 0))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + no_room)
    await came(reader, 4, 1)  # the server knows it
    writer.write(frame(4, 1, 0))
    for stream in range(1, 2 * calls, 2):
        writer.write(frame(1, 4, stream, head(method, name)) + frame(0, 1, stream, b"\0\0\0\0\0"))
    writer.write(frame(6, 0, 0, b"are read"))
    await came(reader, 6, 1)  # and so are the calls before it
    try:
        yield
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_stranger_who_does_not_take_answers_takes_nobodys_place(server: Front) -> None:
    async with taking_nothing(server, CHECK, "", PLACES):
        assert await ask(server, "ada") == 0


async def test_one_caller_who_does_not_take_answers_has_half_of_the_places_for_a_time(
    server: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "PATIENCE_S", 2.0)
    async with taking_nothing(server, STATS, "bob", PLACES):
        await until(server, "bob", "bob has")
        assert await ask(server, "ada") == 0
        await until(server, "bob", "0")


async def test_a_token_that_is_no_text_is_not_known_and_stands_in_no_log(
    server: Front, caplog: pytest.LogCaptureFixture
) -> None:
    host, _, port = server.target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    token = ("authorization", f"Bearer {CALLERS['ada']}".encode() + b"\xff")
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(4, 1, 0))
    writer.write(frame(1, 4, 1, head(STATS, "", token)) + frame(0, 1, 1, b"\0\0\0\0\0"))
    async with asyncio.timeout(10):
        await reader.readuntil(b"the token is not known")
    writer.close()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
