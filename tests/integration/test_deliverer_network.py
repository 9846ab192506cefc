"""Deliveries to real servers on loopback: what a remote may not do to us, connections, addresses, TLS."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from servers.certificates import authority, server_context
from servers.remote import ACCEPTED, KEY, MESSAGE, answering, delivering, hang, once, serving

from fedsvc.config import Settings
from fedsvc.domain.classify import Outcome
from fedsvc.domain.delivery import Reason
from fedsvc.worker import transport as transport_module
from fedsvc.worker.deliverer import Deliverer
from fedsvc.worker.signer import Signer

# -- what a remote may not do to us


async def test_a_host_that_never_answers_is_left_at_the_deadline() -> None:
    result, _ = await once(hang, delivery_timeout=0.2)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.TIMEOUT)
    assert 200 <= result.latency_ms < 5000


async def test_a_head_that_drips_is_left_at_the_same_deadline() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 202 Accepted\r\n")
        while not writer.is_closing():
            writer.write(b"X-Drip: 1\r\n")
            await asyncio.sleep(0.02)

    result, _ = await once(drip, delivery_timeout=0.2)
    assert result.verdict.reason is Reason.TIMEOUT


async def test_an_endless_body_is_dropped_and_the_status_stands() -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"1000\r\n" + b"e" * 4096 + b"\r\n")
            await writer.drain()

    result, _ = await once(pour)
    assert (result.verdict.status, result.verdict.snippet) == (500, "e" * 1024)
    assert result.latency_ms < 3000


async def test_a_body_that_hangs_is_not_waited_for_and_the_status_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport_module, "BODY_WAIT_S", 0.1)

    async def stop_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 x\r\nContent-Length: 1000\r\n\r\nno such user")
        await hang(reader, writer)

    result, _ = await once(stop_short)
    verdict = result.verdict
    assert (verdict.outcome, verdict.status, verdict.snippet) == (Outcome.PERMANENT, 404, "no such user")
    assert result.latency_ms < 5000


async def test_a_body_that_breaks_off_does_not_change_the_status() -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 202 x\r\nContent-Length: 1000\r\n\r\nok")
        writer.close()

    result, _ = await once(break_off)
    assert result.verdict.outcome is Outcome.DELIVERED


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"HTTP/1.1 abc def\r\n\r\n",
        b"HTTP/1.1 500 x\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 404 x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"\x16\x03\x01\x00\x05hello",
        b"HTTP/1.1 202 x\r\nX: " + b"a" * 33_000 + b"\r\n\r\n",
        b"HTTP/1.1 202 x\r\n" + b"X: 1\r\n" * 200 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 202 x\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 4000) for n in range(10)) + b"\r\n",
    ],
    ids=["no-http", "no-status", "bad-length", "two-lengths", "tls", "long-field", "many-fields", "big-head"],
)
async def test_an_answer_that_is_not_http_or_too_big_is_a_protocol_error(head: bytes) -> None:
    result, _ = await once(head)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.PROTOCOL_ERROR)
    assert result.verdict.status == 0


@pytest.mark.parametrize(
    "lengths", [b"Content-Length: -1\r\n", b"Content-Length: 1\r\nContent-Length: 2\r\n"]
)
async def test_what_was_taken_is_delivered_however_long_the_answer_says_it_is(lengths: bytes) -> None:
    result, _ = await once(b"HTTP/1.1 202 x\r\n" + lengths + b"\r\nab")
    assert (result.verdict.outcome, result.verdict.status) == (Outcome.DELIVERED, 202)


@pytest.mark.parametrize("fields", [7, 1], ids=["fields", "one-field"])
async def test_a_big_head_within_the_limit_is_read(fields: int) -> None:
    """Else what has been taken would be sent again and again."""
    big = answering(202, b"", **{f"X_{n}": "a" * (28_000 // fields) for n in range(fields)})
    result, _ = await once(big)
    assert result.verdict.status == 202


async def test_cookies_are_not_kept() -> None:
    async with serving(answering(202, Set_Cookie="a=b; Path=/")) as remote, delivering() as deliverer:
        for _ in range(2):
            await deliverer.deliver(MESSAGE, remote.url, KEY)
        assert ["cookie" in got.headers for got in remote.got] == [False, False]


# -- connections


async def test_a_refused_connection_is_told() -> None:
    async with serving(ACCEPTED) as remote:
        url = remote.url
    async with delivering() as deliverer:
        result = await deliverer.deliver(MESSAGE, url, KEY)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.CONNECT_FAILED)
    assert result.verdict.counts_against_host


async def test_a_new_connection_that_closes_without_an_answer_is_tried_once() -> None:
    result, remote = await once(None)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.CONNECTION_RESET)
    assert len(remote.got) == 1


async def test_a_kept_connection_that_closes_as_we_send_is_replaced_at_once() -> None:
    async with serving(ACCEPTED, None, ACCEPTED) as remote, delivering() as deliverer:
        await deliverer.deliver(MESSAGE, remote.url, KEY)
        result = await deliverer.deliver(MESSAGE, remote.url, KEY)
        assert result.verdict.outcome is Outcome.DELIVERED
        assert (remote.connections, len(remote.got)) == (2, 3)


async def test_a_kept_connection_that_is_closed_with_a_408_as_we_send_is_replaced_at_once() -> None:
    closing = answering(408, Connection="close")
    async with serving(ACCEPTED, closing, ACCEPTED) as remote, delivering() as deliverer:
        for _ in range(2):
            result = await deliverer.deliver(MESSAGE, remote.url, KEY)
            assert result.verdict.outcome is Outcome.DELIVERED
        assert (remote.connections, len(remote.got)) == (2, 3)


@pytest.mark.parametrize(
    "script",
    [(answering(408, Connection="close"),), (ACCEPTED, answering(408, Connection="close")),
     (ACCEPTED, answering(408))],
    ids=["of a new connection", "also of a new connection", "which is not closed"],
)  # fmt: skip
async def test_any_other_408_is_an_answer(script: tuple[bytes, ...]) -> None:
    async with serving(*script) as remote, delivering() as deliverer:
        for _ in script:
            result = await deliverer.deliver(MESSAGE, remote.url, KEY)
        assert result.verdict.reason is Reason.REQUEST_TIMEOUT


async def test_a_connection_is_replaced_only_once() -> None:
    async with serving(ACCEPTED, None) as remote, delivering() as deliverer:
        await deliverer.deliver(MESSAGE, remote.url, KEY)
        result = await deliverer.deliver(MESSAGE, remote.url, KEY)
        assert result.verdict.reason is Reason.CONNECTION_RESET
        assert len(remote.got) == 3


async def test_a_connection_that_the_server_resets_is_told() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    result, _ = await once(reset)
    assert result.verdict.reason is Reason.CONNECTION_RESET


# -- addresses


@pytest.mark.parametrize(
    "inbox",
    [
        "http://127.0.0.1:{port}/inbox",
        "http://localhost:{port}/inbox",
        "http://[::1]:{port}/inbox",
        "http://[::ffff:127.0.0.1]:{port}/inbox",
        "http://0.0.0.0:{port}/inbox",
        "http://127.1:{port}/inbox",
        "http://2130706433:{port}/inbox",
        "http://0x7f000001:{port}/inbox",
        "http://017700000001:{port}/inbox",
    ],
)
async def test_a_private_address_is_refused_however_it_is_spelled(inbox: str) -> None:
    async with serving(ACCEPTED) as remote, delivering(allowed_cidrs="") as deliverer:
        result = await deliverer.deliver(MESSAGE, inbox.format(port=remote.port), KEY)
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.PERMANENT, Reason.ADDRESS_REFUSED)
        assert remote.connections == 0


async def test_a_name_is_delivered_to_where_its_network_is_allowed() -> None:
    async with serving(ACCEPTED) as remote, delivering() as deliverer:
        result = await deliverer.deliver(MESSAGE, f"http://localhost:{remote.port}/inbox", KEY)
        assert result.verdict.status == 202
        assert remote.got[0].headers["host"] == f"localhost:{remote.port}"


async def test_a_name_that_does_not_exist_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("fedsvc.worker.resolver.socket.getaddrinfo", nobody)
    async with delivering() as deliverer:
        result = await deliverer.deliver(MESSAGE, "https://nobody.example/inbox", KEY)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.DNS_NOT_FOUND)


async def test_plain_http_is_refused_unless_allowed() -> None:
    async with serving(ACCEPTED) as remote, delivering(allow_http=False) as deliverer:
        result = await deliverer.deliver(MESSAGE, remote.url, KEY)
        assert result.verdict.reason is Reason.ADDRESS_REFUSED
        assert remote.connections == 0


@pytest.mark.parametrize("inbox", ["", "nonsense", "http://", "http://a b/", "http://h:port/"])
async def test_an_inbox_that_is_no_url_is_a_dead_letter_and_no_crash(inbox: str) -> None:
    async with delivering() as deliverer:
        result = await deliverer.deliver(MESSAGE, inbox, KEY)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.PERMANENT, Reason.ADDRESS_REFUSED)


# -- TLS


@pytest.fixture
def certificate() -> Path:
    """Of a server at 127.0.0.1, by an authority of our own."""
    return authority().certify("127.0.0.1")


async def test_an_https_inbox_of_a_private_authority_is_delivered_to(certificate: Path) -> None:
    async with (
        serving(ACCEPTED, tls=server_context(certificate)) as remote,
        delivering(ca_file=str(authority().file), allow_http=False) as deliverer,
    ):
        for _ in range(2):
            result = await deliverer.deliver(MESSAGE, f"https://127.0.0.1:{remote.port}/inbox", KEY)
            assert result.verdict.status == 202
        assert [got.body for got in remote.got] == [MESSAGE.body] * 2
        assert remote.connections == 1


async def test_a_certificate_of_an_unknown_authority_is_refused(certificate: Path) -> None:
    async with serving(ACCEPTED, tls=server_context(certificate)) as remote, delivering() as deliverer:
        result = await deliverer.deliver(MESSAGE, f"https://127.0.0.1:{remote.port}/inbox", KEY)
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.TLS_FAILED)
        assert remote.got == []


async def test_a_certificate_for_another_name_is_refused(certificate: Path) -> None:
    async with (
        serving(ACCEPTED, tls=server_context(certificate)) as remote,
        delivering(ca_file=str(authority().file)) as deliverer,
    ):
        result = await deliverer.deliver(MESSAGE, f"https://localhost:{remote.port}/inbox", KEY)
        assert result.verdict.reason is Reason.TLS_FAILED
        assert remote.got == []


async def test_a_handshake_that_hangs_is_left_at_the_connect_timeout() -> None:
    async with serving(ACCEPTED) as remote, delivering(connect_timeout=0.2) as deliverer:
        result = await deliverer.deliver(MESSAGE, f"https://127.0.0.1:{remote.port}/inbox", KEY)
        assert result.verdict.reason is Reason.CONNECT_TIMEOUT
        assert (remote.connections, remote.got) == (1, [])


async def test_a_ca_file_that_cannot_be_read_stops_the_start() -> None:
    signer = Signer(1, 2)
    deliverer = Deliverer(Settings.from_environment({}, ca_file="/nowhere/ca.pem"), signer)
    with pytest.raises(OSError, match="No such file"):
        await deliverer.start()
    await deliverer.close()
    signer.close()
