"""A server answers with an attack: the verdict is as it must be, in time, and the worker is well after it."""

from __future__ import annotations

import asyncio
import gzip
import socket
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from random import Random

import pytest
from servers.remote import ACCEPTED, PATIENCE, Act, deliver, delivering, open_files, reset, serving

from fedsvc.domain.classify import Outcome
from fedsvc.domain.delivery import SNIPPET_BYTES, Reason
from hostile.attacks import ATTACKS

DEADLINE_S = 0.6
#: what a busy machine may take beyond a deadline
SLACK_MS = 2000


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_ends_in_its_verdict_and_in_time(name: str) -> None:
    attack = ATTACKS[name]
    async with (
        serving(attack.item) as remote,
        serving(ACCEPTED) as good,
        delivering(delivery_timeout=DEADLINE_S) as deliverer,
    ):
        result = await deliver(deliverer, remote.url)
        verdict = result.verdict
        assert (verdict.reason, verdict.status) == (attack.reason, attack.status), verdict
        assert verdict.outcome is (Outcome.DELIVERED if verdict.reason is Reason.OK else Outcome.RETRY)
        assert verdict.counts_against_host is (verdict.reason is not Reason.OK)
        assert result.latency_ms < DEADLINE_S * 1000 + SLACK_MS
        assert len(verdict.snippet.encode()) <= 1024
        assert verdict.snippet.isprintable()
        assert verdict.detail.isprintable()
        assert (await deliver(deliverer, good.url)).verdict.status == 202


HEAD = b"HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n"
ANSWER = HEAD + b"hello"
CHUNKED_HEAD = b"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED_ANSWER = CHUNKED_HEAD + b"2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nX: 1\r\n\r\n"
INTERIM = b"HTTP/1.1 103 x\r\nLink: </a>\r\n\r\n"
WHOLE = {"a length": ANSWER, "chunks": CHUNKED_ANSWER, "interim answers": INTERIM + INTERIM + ANSWER}


def stopping(answer: bytes, how: str) -> Act:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        if how == "reset":
            await reset(reader, writer)
        else:
            writer.close()

    return act


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("count", range(len(ANSWER)))
async def test_an_answer_may_break_off_at_every_byte(count: int, how: str) -> None:
    async with serving(stopping(ANSWER[:count], how)) as remote, delivering() as deliverer:
        verdict = (await deliver(deliverer, remote.url)).verdict
    assert (verdict.outcome, verdict.counts_against_host) == (Outcome.RETRY, True)
    if count >= len(HEAD) and how == "close":
        assert (verdict.status, verdict.snippet) == (500, ANSWER[len(HEAD) : count].decode())
    else:  # a reset may take with it what came before
        assert verdict.reason in (Reason.CONNECTION_RESET, Reason.PROTOCOL_ERROR, Reason.SERVER_ERROR)


@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_may_come_in_any_two_parts(name: str) -> None:
    answer = WHOLE[name]
    at = iter(range(len(answer)))

    async def in_two(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = next(at)
        writer.write(answer[:cut])
        await writer.drain()
        for _ in range(3):  # turns of the loop, so that the parts arrive one by one
            await asyncio.sleep(0)
        writer.write(answer[cut:])

    async with serving(in_two) as remote, delivering() as deliverer:
        for _ in range(len(answer)):
            verdict = (await deliver(deliverer, remote.url)).verdict
            assert (verdict.status, verdict.snippet) == (500, "hello")
        assert remote.connections == 1


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_is_sent_is_no_defect_of_ours(seed: int) -> None:
    """Answers with bytes changed, cut out, doubled and put elsewhere."""
    random = Random(seed)
    parts = [*WHOLE.values(), *(a.item for a in ATTACKS.values() if isinstance(a.item, bytes))]
    sent: list[bytes] = []

    def spoiled() -> bytes:
        answer = bytearray(random.choice(parts)[:2000])
        for _ in range(random.randint(1, 8)):
            at, length = random.randrange(len(answer) + 1), random.randint(1, 12)
            other = random.choice(parts)
            start = random.randrange(len(other))
            answer[at : at + random.choice((0, length))] = random.choice(
                (b"", random.randbytes(length), other[start : start + length], b"\r\n", b"\0", b"\xff\xfe")
            )
        return bytes(answer)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent.append(spoiled())
        writer.write(sent[-1])
        writer.close()

    async with serving(act) as remote, delivering(delivery_timeout=2) as deliverer:
        for _ in range(25):
            verdict = (await deliver(deliverer, remote.url)).verdict
            assert verdict.reason is not Reason.WORKER_ERROR, (verdict, sent[-1])
            assert verdict.detail.isprintable()
            assert verdict.snippet.isprintable()


def _deflated(body: bytes) -> bytes:
    """Without the wrapping of RFC 1950."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZIP", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", _deflated),
}


@pytest.mark.parametrize("how", ["length", "chunks"])
@pytest.mark.parametrize("name", PACKED)
async def test_of_what_is_compressed_unasked_no_more_is_unpacked_than_is_kept(name: str, how: str) -> None:
    encoding, pack = PACKED[name]
    for status, text, shown in (
        (500, b"open sesame", "open sesame"),
        (500, b"e" * 20_000_000, "e" * SNIPPET_BYTES),
        (
            200,
            b"<!DOCTYPE html><title>This domain is for sale</title>" + Random(1).randbytes(100_000),
            "<!DOCTYPE html>",
        ),
    ):
        packed = pack(text)
        framed = (
            f"Content-Length: {len(packed)}\r\n\r\n".encode() + packed
            if how == "length"
            else b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed)
        )
        answer = f"HTTP/1.1 {status} x\r\nContent-Encoding: {encoding}\r\n".encode() + framed
        async with serving(answer) as remote, delivering() as deliverer:
            verdict = (await deliver(deliverer, remote.url)).verdict
        assert verdict.reason is (Reason.SUSPECT if status == 200 else Reason.SERVER_ERROR)
        assert verdict.snippet.startswith(shown)
        assert len(verdict.snippet.encode()) <= SNIPPET_BYTES


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "base64"])
async def test_of_what_cannot_be_unpacked_nothing_is_kept(encoding: str) -> None:
    packed = b"\xcf\xff\xff\x7f\xf8\x27\x00" * 100
    head = f"HTTP/1.1 500 x\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(packed)}\r\n\r\n"
    async with serving(head.encode() + packed) as remote, delivering() as deliverer:
        verdict = (await deliver(deliverer, remote.url)).verdict
    assert (verdict.reason, verdict.status, verdict.snippet) == (Reason.SERVER_ERROR, 500, "")


HEADER_VALUES = {
    "nothing": b"",
    "not UTF-8": b"\xff\xfe\x80",
    "lone surrogates": b"\xed\xa0\x80",
    "signs": b"(),/:;<=>?@[\\]{}\"'%&*+-.^_`|~",
    "quotes": b'"' * 3000,
    "open brackets": b"(" * 3000,
    "a dictionary of thousands": b"a=(" + b'"x" ' * 1500 + b")",
    "parameters": b"sig=()" + b";a=1" * 1500,
    "numbers": b"9" * 8000,
    "terminal codes": b"\x1b[2J\x07",
}


@pytest.mark.parametrize("name", HEADER_VALUES)
@pytest.mark.parametrize("status", [202, 307, 401, 429, 503])
async def test_a_header_may_hold_anything(status: int, name: str) -> None:
    names = (
        b"Accept-Signature", b"Location", b"Retry-After", b"Date", b"Content-Type", b"Set-Cookie",
        b"Content-Encoding", b"WWW-Authenticate", b"Link", b"Alt-Svc", b"Keep-Alive", b"Trailer",
    )  # fmt: skip
    async with serving(b"") as remote, delivering() as deliverer:
        for header in names:
            remote.script = [
                b"HTTP/1.1 %d x\r\n%s: %s\r\nContent-Length: 0\r\n\r\n"
                % (status, header, HEADER_VALUES[name])
            ]
            result = await deliver(deliverer, remote.url)
            assert result.verdict.reason is not Reason.WORKER_ERROR, header
            assert result.verdict.detail.isprintable()
            assert result.latency_ms < SLACK_MS


@pytest.mark.parametrize("form", ["two headers", "a list", "the first is no date"])
async def test_a_retry_after_that_is_repeated_waits_for_one_of_them_or_none(form: str) -> None:
    value = {
        "two headers": b"Retry-After: 7\r\nRetry-After: 9",
        "a list": b"Retry-After: 7, 9",
        "the first is no date": b"Retry-After: soon\r\nRetry-After: 9",
    }[form]
    answer = b"HTTP/1.1 429 x\r\n%s\r\nContent-Length: 0\r\n\r\n" % value
    async with serving(answer) as remote, delivering() as deliverer:
        verdict = (await deliver(deliverer, remote.url)).verdict
    assert verdict.reason is Reason.RATE_LIMITED
    assert verdict.retry_after_ms in (7000, 9000, None)


async def test_a_body_that_is_late_leaves_the_next_form_of_signature_its_time() -> None:
    """Reading it is bounded, but the deadline of the whole is as it was."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 401 x\r\nContent-Length: 2\r\n\r\n")
        await writer.drain()
        for _ in range(3):
            await asyncio.sleep(0)
        writer.write(b"no")

    async def think(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.6)  # longer than a body may take
        writer.write(ACCEPTED)

    async with serving(refuse, think) as remote, delivering() as deliverer:
        result = await deliver(deliverer, remote.url)
    assert result.verdict.outcome is Outcome.DELIVERED
    assert len(remote.got) == 2


async def test_a_server_that_takes_connections_and_does_nothing_is_left_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as never_accepts:
        port = never_accepts.getsockname()[1]
        async with delivering(delivery_timeout=0.3) as deliverer:
            before = open_files()
            results = await asyncio.gather(
                *(deliver(deliverer, f"http://127.0.0.1:{port}/") for _ in range(50))
            )
            assert {result.verdict.reason for result in results} == {Reason.TIMEOUT}
            async with asyncio.timeout(PATIENCE):
                while open_files() > before:
                    await asyncio.sleep(0)


async def test_a_server_that_takes_no_connections_is_left_at_the_connect_timeout() -> None:
    """Its queue is full: what is sent to it is dropped, and nothing comes back."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as full, ExitStack() as others:
        where = full.getsockname()
        for _ in range(4):
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(where)
        async with delivering(connect_timeout=0.3) as deliverer:
            result = await deliver(deliverer, f"http://127.0.0.1:{where[1]}/")
    assert result.verdict.reason is Reason.CONNECT_TIMEOUT
    assert result.verdict.counts_against_host
    assert result.latency_ms < 300 + SLACK_MS
