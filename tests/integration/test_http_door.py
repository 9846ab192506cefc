"""What strangers may do to the HTTP side: nobody else is kept out, nothing is held, no log is filled."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import web
from servers.front import Front
from structlog.testing import capture_logs

from fedsvc import http_door
from fedsvc.config_types import Address
from fedsvc.errors import ConfigurationError
from fedsvc.server.dashboard import app as dashboard

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
FORM = b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
BOMB = gzip.compress(b"a" * 20_000_000)
#: what is sent, and the beginning of the answer
GARBAGE = {
    "a TLS handshake": (b"\x16\3\1\2\0", b"HTTP/1.0 400"),
    "a line without end": (b"GET /" + b"a" * 9000, b"HTTP/1.0 400"),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n", b"HTTP/1.0 400"),
    "an unknown method": (b"\xff\xfe / HTTP/1.1\r\n\r\n", b"HTTP/1.0 400"),
    "two lengths": (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"HTTP/1.0 400"),
    "length and chunks": (
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 400",
    ),
    "chunks that are none": (FORM + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.0 400"),
    "a host that is none": (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", b"HTTP/1.1 421"),
    "packed, but not really": (
        FORM + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 403",
    ),
    "a bomb": (
        FORM + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB,
        b"HTTP/1.1 400",
    ),
    "a form of no characters": (FORM + b"Content-Length: 2\r\n\r\n\xff\xfe", b"HTTP/1.1 400"),
    "a form that is too long": (
        FORM + b"Content-Length: 1200000\r\n\r\n" + b"a" * 1_200_000,
        b"HTTP/1.1 413",
    ),
    "an escape out of static": (
        b"GET /static/%2e%2e%2f%2e%2e%2fapp.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"HTTP/1.1 404",
    ),
}


@asynccontextmanager
async def connected(
    at: str, by: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection from the address `by`."""
    host, _, port = at.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(by, 0))
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()


async def answer(at: str, request: bytes) -> bytes:
    """The beginning of what comes back; empty if the connection is closed."""
    async with connected(at) as (reader, writer):
        try:
            writer.write(request)
            return await reader.read(4096)
        except ConnectionError:
            return b""


async def alive(at: str) -> bool:
    return (await answer(at, HEAD + b"\r\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("name", GARBAGE)
async def test_what_is_no_request_is_refused_and_fills_no_log(
    server: Front, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    request, expected = GARBAGE[name]
    with capture_logs() as logged:
        assert (await answer(server.http, request)).startswith(expected)
        assert await alive(server.http)
    assert [entry for entry in logged if entry["log_level"] in ("error", "critical")] == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_browser_that_goes_in_the_middle_of_a_form_is_no_defect(server: Front) -> None:
    with capture_logs() as logged:
        async with connected(server.http) as (_, writer):
            writer.write(FORM + b"Content-Length: 1000\r\n\r\na=")
            await writer.drain()
        for _ in range(3):
            assert await alive(server.http)
    assert [entry for entry in logged if entry["log_level"] == "error"] == []


@asynccontextmanager
async def listening() -> AsyncIterator[str]:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    runner, address = await http_door.listen(app, Address("127.0.0.1", 0))
    try:
        yield str(address)
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "sent", [b"", b"GET", HEAD, HEAD + b"\r\n" + HEAD], ids=["0", "word", "half", "next"]
)
async def test_a_head_that_does_not_come_is_given_up(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_door, "PATIENCE_S", 0.05)
    async with listening() as at, connected(at) as (reader, writer):
        writer.write(sent)
        answers = await reader.read()
        assert answers.count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")


async def test_a_form_that_does_not_come_is_given_up(server: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "FORM_PATIENCE_S", 0.05)
    request = FORM + b"Content-Length: 1000\r\n\r\na="
    assert (await answer(server.http, request)).startswith(b"HTTP/1.1 408")


@asynccontextmanager
async def three_held(at: str) -> AsyncIterator[AsyncExitStack]:
    """Three connections of those that wait for a head, and no fourth from there; all end with the stack, and
    then there is room again."""
    async with AsyncExitStack() as held:
        for _ in range(3):
            _, writer = await held.enter_async_context(connected(at))
            writer.write(HEAD)
        async with connected(at) as (reader, _):
            assert await reader.read() == b""
        yield held
    async with asyncio.timeout(10):
        while not await alive(at):
            pass


async def test_of_too_many_connections_the_last_are_closed_and_make_room_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_door, "MOST", 3)
    async with listening() as at, three_held(at):
        pass


async def test_one_address_does_not_get_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_door, "MOST_OF_ONE", 3)
    async with listening() as at, three_held(at) as held:
        for _ in range(2):
            reader, writer = await held.enter_async_context(connected(at, "127.0.0.2"))
            writer.write(HEAD + b"\r\n")
            assert (await reader.read(4096)).startswith(b"HTTP/1.1 200")


async def test_an_address_that_is_taken_is_told() -> None:
    async with listening() as at:
        with pytest.raises(ConfigurationError, match="FEDSVC_HTTP_LISTEN: cannot listen on 127"):
            await http_door.listen(web.Application(), Address("127.0.0.1", int(at.rpartition(":")[2])))
