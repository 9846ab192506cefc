"""What a server sends beyond its answer is never taken as the answer to the next request."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from servers.remote import (
    ACCEPTED,
    BODY,
    PATIENCE,
    Remote,
    deliver,
    delivering,
    message_of,
    open_files,
    reset,
    serving,
)

from fedsvc.domain.delivery import Reason
from fedsvc.worker.connection import BrokenAnswer, InboxConnection
from fedsvc.worker.deliverer import Deliverer

POISON = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"
EMPTY = b"HTTP/1.1 202 x\r\nContent-Length: 0\r\n"

#: all sent at once; a status of 202 stands, whatever follows it
AT_ONCE = {
    "two answers": ACCEPTED + POISON,
    "a hundred answers": ACCEPTED + POISON * 100,
    "an interim answer between": ACCEPTED + b"HTTP/1.1 100 x\r\n\r\n" + POISON,
    "length too short": b"HTTP/1.1 202 x\r\nContent-Length: 2\r\n\r\nok" + POISON,
    "bytes behind the length": b"HTTP/1.1 202 x\r\nContent-Length: 2\r\n\r\nokhello",
    "no length but a body of an answer": b"HTTP/1.1 202 x\r\n\r\n" + POISON,
    "length of nothing": b"HTTP/1.1 202 x\r\nContent-Length: 0\r\n\r\n" + POISON,
    "no content with a length": b"HTTP/1.1 204 x\r\nContent-Length: %d\r\n\r\n" % len(POISON) + POISON,
    "not modified with a body": b"HTTP/1.1 304 x\r\n\r\n" + POISON,
    "behind the last chunk": b"HTTP/1.1 202 x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + POISON,
    "behind trailers": b"HTTP/1.1 202 x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n\r\n" + POISON,
    "a trailer that is an answer": b"HTTP/1.1 202 x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + POISON,
    "length and chunks": EMPTY + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + POISON,
    "chunks and length": b"HTTP/1.1 202 x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
    + POISON,
    "chunks under another name": EMPTY + b"Transfer-Encoding : chunked\r\n\r\n%x\r\n" % len(POISON) + POISON,
    "chunks twice": b"HTTP/1.1 202 x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + POISON,
    "chunks before identity": b"HTTP/1.1 202 x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"
    + POISON,
    "chunks in a tab": EMPTY + b"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n" + POISON,
    "length in a folded header": b"HTTP/1.1 202 x\r\nX: 1\r\n Content-Length: 5\r\n\r\n" + POISON,
    "length with a space": b"HTTP/1.1 202 x\r\nContent-Length : 2\r\n\r\nok" + POISON,
    "length behind a bare return": b"HTTP/1.1 202 x\r\nX: 1\rContent-Length: 2\r\n\r\nok" + POISON,
    "half an answer": ACCEPTED + POISON[:9],
    "half a head": ACCEPTED + POISON[:-2],
    "line ends": ACCEPTED + b"\r\n\r\n" + POISON,
    "switching protocols": b"HTTP/1.1 101 x\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + POISON,
}


@asynccontextmanager
async def poisoned(*script: object) -> AsyncIterator[tuple[Remote, Deliverer]]:
    async with serving(*script) as remote, delivering() as deliverer:  # type: ignore[arg-type]
        yield remote, deliverer


@pytest.mark.parametrize("name", AT_ONCE)
async def test_what_comes_with_an_answer_does_not_answer_the_next_request(name: str) -> None:
    async with poisoned(AT_ONCE[name], ACCEPTED) as (remote, deliverer):
        first = await deliver(deliverer, remote.url)
        assert first.verdict.status != 410
        for _ in range(2):
            assert (await deliver(deliverer, remote.url)).verdict.status == 202
        assert len(remote.got) == 3


#: sent when the first answer has been taken and its connection lies idle
LATER = {
    "an answer": POISON,
    "answers": POISON * 100,
    "half an answer": POISON[:20],
    "an interim answer": b"HTTP/1.1 100 x\r\n\r\n",
    "a line end": b"\r\n",
    "garbage": b"garbage",
    "one byte": b"H",
    "a megabyte": b"a" * 1_000_000,
}


@pytest.mark.parametrize("name", LATER)
async def test_what_comes_on_an_idle_connection_ends_it(name: str) -> None:
    more = asyncio.Event()
    ended = asyncio.Event()

    async def send_later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ACCEPTED)
        await more.wait()
        writer.write(LATER[name])
        with suppress(ConnectionError):
            assert await reader.read() == b""  # closed, and no second request on it
        ended.set()

    async with poisoned(send_later, ACCEPTED) as (remote, deliverer):
        assert (await deliver(deliverer, remote.url)).verdict.status == 202
        more.set()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        assert (await deliver(deliverer, remote.url)).verdict.status == 202
        assert (remote.connections, len(remote.got)) == (2, 2)


class Raw:
    """Accepts connections on a thread's socket, so that it can send while the event loop has no turn."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}/inbox"
        self.requests: list[int] = []
        self.sockets: list[socket.socket] = []
        self.answer = ACCEPTED

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                self.sockets.append(connection)
                threading.Thread(
                    target=self._answer, args=(connection, len(self.sockets)), daemon=True
                ).start()

    def _answer(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError):
            while head := connection.recv(65_536):
                while BODY not in head:
                    head += connection.recv(65_536)
                self.requests.append(number)
                connection.sendall(self.answer)

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for connection in self.sockets:
            connection.close()


@pytest.mark.parametrize("name", ["an answer", "half an answer", "one byte", "its end"])
async def test_what_has_come_unread_before_a_request_does_not_answer_it(name: str) -> None:
    """It lies with the operating system, as the event loop was busy elsewhere."""
    raw = Raw()
    thread = threading.Thread(target=raw.serve, daemon=True)
    thread.start()
    try:
        async with delivering() as deliverer:
            assert (await deliver(deliverer, raw.url)).verdict.status == 202
            raw.answer = b"HTTP/1.1 422 x\r\nContent-Length: 0\r\n\r\n"
            if name == "its end":
                raw.sockets[0].shutdown(socket.SHUT_WR)
            else:
                raw.sockets[0].sendall(LATER[name])
            # not one turn of the loop lies between: nothing waits until the request is written
            assert (await deliver(deliverer, raw.url)).verdict.status == 422
        assert raw.requests == [1, 2]
    finally:
        raw.close()
        thread.join(PATIENCE)


@pytest.mark.parametrize("early", [ACCEPTED, ACCEPTED * 2, b"220 ready\r\n", b"H"])
async def test_what_comes_before_the_request_answers_no_other(early: bytes) -> None:
    """If it is seen in time it is no answer at all. If not it is taken for one, and the true one for none."""
    ended = asyncio.Event()

    class Hasty(Remote):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self.connections:
                await super().serve(reader, writer)
            self.connections += 1
            writer.write(early)
            try:
                await self.read(reader)
                writer.write(POISON)
                assert await reader.read() == b""
            finally:
                ended.set()

    async with serving(ACCEPTED, kind=Hasty) as remote, delivering() as deliverer:
        first = (await deliver(deliverer, remote.url)).verdict
        assert (first.reason, first.status) in (
            (Reason.PROTOCOL_ERROR, 0),
            (Reason.OK, 202),
            (Reason.GONE, 410),
        )
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        assert (await deliver(deliverer, remote.url)).verdict.status == 202


async def test_a_connection_that_spoke_before_it_was_asked_has_not_answered() -> None:
    here, there = socket.socketpair()
    with there:
        _, connection = await asyncio.get_running_loop().create_connection(InboxConnection, sock=here)
        connection.data_received(ACCEPTED)
        assert not connection.usable
        with pytest.raises(BrokenAnswer, match="before the request"):
            await connection.send(b"POST / HTTP/1.1\r\n\r\n")
        connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        EMPTY + b"Connection: close\r\n\r\n",
        EMPTY + b"Connection: Keep-Alive, Close\r\n\r\n",
        b"HTTP/1.0 202 x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 202 x\r\nTransfer-Encoding: gzip, chunked, gzip\r\n\r\n",
    ],
    ids=["close", "among others", "HTTP/1.0", "coding that ends with the connection"],
)
async def test_a_connection_that_is_to_be_closed_is_not_used_again(answer: bytes) -> None:
    async with poisoned(answer) as (remote, deliverer):
        for _ in range(3):
            assert (await deliver(deliverer, remote.url)).verdict.status == 202
        assert remote.connections == 3


@pytest.mark.parametrize("ends", ["at once", "never"])
async def test_a_length_that_is_too_long_costs_the_connection_only(ends: str) -> None:
    async def short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 202 x\r\nContent-Length: 1000\r\n\r\nok")
        if ends == "at once":
            writer.close()
        await reader.read()

    async with poisoned(short, ACCEPTED) as (remote, deliverer):
        for _ in range(3):
            assert (await deliver(deliverer, remote.url)).verdict.status == 202
        assert (remote.connections, len(remote.got)) == (2, 3)


async def test_an_answer_without_length_ends_with_its_connection() -> None:
    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 x\r\n\r\nall of it")
        writer.close()

    async with poisoned(whole, ACCEPTED) as (remote, deliverer):
        assert (await deliver(deliverer, remote.url)).verdict.snippet == "all of it"
        assert (await deliver(deliverer, remote.url)).verdict.status == 202
        assert remote.connections == 2


async def test_a_kept_connection_that_is_reset_is_replaced_at_once() -> None:
    async with poisoned(ACCEPTED, reset, ACCEPTED) as (remote, deliverer):
        for _ in range(2):
            assert (await deliver(deliverer, remote.url)).verdict.status == 202
        assert len(remote.got) == 3


async def test_deliveries_side_by_side_get_each_its_own_answer() -> None:
    """Each server answers with its own status, twice, at random moments of the others."""

    def answer(status: int) -> bytes:
        return b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % status

    async with (
        serving(answer(404) + POISON) as one,
        serving(answer(422) + POISON) as two,
        delivering() as deliverer,
    ):
        urls = [one.url, two.url] * 50
        results = await asyncio.gather(*(deliver(deliverer, url) for url in urls))
    assert [result.verdict.status for result in results] == [404, 422] * 50


class Deaf(Remote):
    """Reads the head of a request and no more."""

    async def read(self, reader: asyncio.StreamReader) -> None:
        await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 413 x\r\nContent-Length: 0\r\n\r\n", Reason.TOO_LARGE),
        (b"HTTP/1.1 413 x\r\nContent-Length: 9\r\n\r\n", Reason.TOO_LARGE),
        (b"", Reason.TIMEOUT),
    ],
    ids=["answered", "half answered", "not answered"],
)
async def test_a_body_that_is_not_read_is_dropped(answer: bytes, reason: Reason) -> None:
    """Else its connection and buffer would stay for as long as the other side likes."""

    async def look_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await asyncio.Event().wait()

    async with serving(look_away, kind=Deaf) as remote, delivering(delivery_timeout=0.5) as deliverer:
        before = open_files()
        result = await deliver(deliverer, remote.url, message_of(b"x" * 30_000_000))
        assert result.verdict.reason is reason
        async with asyncio.timeout(PATIENCE):
            while open_files() > before + 1:  # the server's end stays
                await asyncio.sleep(0)
