"""What a connection to Redis may do to us: answers in pieces, too many, none, or what is no answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hiredis import Reader
from redis.asyncio.connection import Connection

from fedsvc.errors import FedsvcError, QueueUnavailable
from fedsvc.queue.link import Link
from fedsvc.queue.topology import Single
from fedsvc.queue.wire import Wire

Answer = Callable[[asyncio.StreamWriter], None]


def says(*parts: bytes) -> Answer:
    def answer(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)

    return answer


def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


PONG = says(b"+PONG\r\n")


class Speaker:
    """Takes every command for what `answers` says next, but for those with which a connection begins."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.ended = asyncio.Event()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        commands = Reader()
        while data := await reader.read(65_536):
            commands.feed(data)
            while (command := commands.gets()) is not False:
                if command[0] in (b"HELLO", b"CLIENT"):
                    writer.write(b"%1\r\n+proto\r\n:3\r\n" if command[0] == b"HELLO" else b"+OK\r\n")
                else:
                    self.answers.pop(0)(writer)
        self.ended.set()
        writer.close()


@asynccontextmanager
async def speaking(*answers: Answer, timeout: float = 20.0) -> AsyncIterator[tuple[Link, Speaker]]:
    speaker = Speaker(*answers)
    server = await asyncio.start_server(speaker.talk, "127.0.0.1", 0)
    link = Link(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=timeout)
    try:
        yield link, speaker
    finally:
        await link.close()
        server.close()


async def test_answers_are_put_together_from_pieces() -> None:
    def in_pieces(writer: asyncio.StreamWriter) -> None:
        async def write() -> None:
            for byte in b"*2\r\n$3\r\nabc\r\n:-7\r\n":
                writer.write(bytes([byte]))
                await writer.drain()

        writing.append(asyncio.ensure_future(write()))

    writing: list[asyncio.Future[None]] = []
    async with speaking(in_pieces, PONG) as (link, speaker):
        assert await link.call("GET", "a") == [b"abc", -7]
        assert await link.call("PING") == b"PONG"
        assert speaker.connections == 1


async def test_answers_of_one_flight_keep_their_order_errors_among_them() -> None:
    answers = (says(b":1\r\n"), says(b"-ERR no\r\n"), says(b"$-1\r\n"), says(b":4\r\n"))
    async with speaking(*answers) as (link, speaker):
        told = await asyncio.gather(*(link.call("GET", n) for n in range(4)), return_exceptions=True)
        assert [told[0], told[2], told[3]] == [1, None, 4]
        assert isinstance(told[1], FedsvcError)
        assert not isinstance(told[1], QueueUnavailable)
        assert speaker.connections == 1


async def test_more_than_was_asked_for_is_trusted_by_nobody() -> None:
    async with speaking(says(b"+one\r\n+surplus\r\n"), PONG) as (link, speaker):
        with pytest.raises(QueueUnavailable):
            await link.call("GET", "a")
        assert await link.call("PING") == b"PONG"
        assert speaker.connections == 2


async def test_pushed_messages_are_no_answers() -> None:
    pushed = b">2\r\n$10\r\ninvalidate\r\n*-1\r\n"
    async with speaking(says(pushed, b"+one\r\n", pushed), PONG) as (link, speaker):
        assert await link.call("GET", "a") == b"one"
        assert await link.call("PING") == b"PONG"
        assert speaker.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        says(b"$5\r\nabc"),
        says(b"-LOADING Redis is loading the dataset in memory\r\n"),
        says(b"-NOAUTH Authentication required.\r\n"),
        hang_up,
    ],
)
async def test_what_is_no_answer_makes_redis_unavailable_until_the_next_call(
    answer: Answer,
) -> None:
    def told_and_gone(writer: asyncio.StreamWriter) -> None:
        answer(writer)
        writer.close()

    async with speaking(told_and_gone, PONG) as (link, speaker):
        with pytest.raises(QueueUnavailable):
            await link.call("GET", "a")
        assert await link.call("PING") == b"PONG"
        assert speaker.connections == 2


async def test_a_redis_that_says_nothing_is_waited_for_so_long_and_the_connection_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with speaking(PONG, says(), PONG, timeout=20.0) as (link, speaker):
        assert await link.call("PING") == b"PONG"
        topology = link._topology
        assert isinstance(topology, Single)
        assert topology._timeout == 20.0
        with (
            monkeypatch.context() as short
        ):  # for this one alone: to connect may take longer on a busy machine
            short.setattr(topology, "_timeout", 0.2)
            async with asyncio.timeout(20):
                with pytest.raises(QueueUnavailable, match="does not answer: TimeoutError"):
                    await link.call("GET", "a")
        async with asyncio.timeout(20):
            await speaker.ended.wait()
        assert await link.call("PING") == b"PONG"
        assert speaker.connections == 2


async def test_an_answer_to_a_call_that_was_given_up_goes_to_nobody_else() -> None:
    writers: list[asyncio.StreamWriter] = []
    asked = asyncio.Event()

    def later(writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        asked.set()

    async with speaking(later, PONG) as (link, _):
        call = link.call("GET", "a")
        async with asyncio.timeout(20):
            await asked.wait()
        call.cancel()
        other = asyncio.ensure_future(_called(link))
        writers[0].write(b"+one\r\n")
        assert await other == b"PONG"


async def test_a_connection_that_ends_before_it_is_used_makes_redis_unavailable_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made_and_lost(wire: Wire, connection: Connection) -> None:
        make(wire, connection)
        wire._transport.abort()

    make = Wire.__init__
    async with speaking(PONG) as (link, speaker):
        with monkeypatch.context() as patched:
            patched.setattr(Wire, "__init__", made_and_lost)
            with pytest.raises(QueueUnavailable, match="does not answer"):
                await link.call("GET", "a")
        assert await link.call("PING") == b"PONG"
        assert speaker.connections == 2


async def _called(link: Link) -> object:
    return await link.call("PING")
