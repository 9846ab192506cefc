"""Deliveries to real servers on loopback: what arrives, and what becomes of every kind of answer."""

import asyncio
import base64
import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from apsig.draft import Verifier
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from fedsvc.config import Settings
from fedsvc.domain.classify import Outcome
from fedsvc.domain.delivery import Reason
from fedsvc.domain.keys import load_private_key
from fedsvc.domain.message import Message
from fedsvc.worker import transport as transport_module
from fedsvc.worker.deliverer import AttemptResult, Deliverer
from fedsvc.worker.signer import Signer

RSA = rsa.generate_private_key(65537, 2048)
KEY = load_private_key(
    RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
)
KEY_ID = "https://me.example/u/x#main-key"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"


def message_of(body: bytes) -> Message:
    return Message(
        body=body,
        activity_id="https://me.example/activities/1",
        activity_type="Like",
        actor="https://me.example/u/x",
        key_id=KEY_ID,
        key_name=KEY.fingerprint,
        origin="me.example",
        digest=Message.digest_of(body),
    )


BODY = '{"id": "https://me.example/activities/1",  "type":"Like", "é": "\u2028"}\n'.encode()
MESSAGE = message_of(BODY)


@asynccontextmanager
async def delivering(**changes: Any) -> AsyncIterator[Deliverer]:
    values = {"allow_http": True, "allowed_cidrs": "127.0.0.0/8", "delivery_timeout": 10.0} | changes
    signer = Signer(1)
    deliverer = Deliverer(Settings.from_environment({}, **values), signer)
    await deliverer.start()
    try:
        yield deliverer
    finally:
        await deliverer.close()
        signer.close()


class Got(NamedTuple):
    head: bytes
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


class Remote:
    """A server that reads requests byte for byte and answers what `script` says, one item a request.

    An item is bytes to send, or a coroutine function that gets the streams; None ends the connection.
    The last item is repeated."""

    Item = bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None

    def __init__(self, *script: Item) -> None:
        self.script = list(script)
        self.got: list[Got] = []
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/inbox"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                got = Got(head, b"")
                body = await reader.readexactly(int(got.headers["content-length"]))
                self.got.append(got._replace(body=body))
                item = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                if item is None:
                    return
                if isinstance(item, bytes):
                    writer.write(item)
                    await writer.drain()
                else:
                    await item(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(*script: Remote.Item, tls: ssl.SSLContext | None = None) -> AsyncIterator[Remote]:
    remote = Remote(*script)
    handlers: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(remote.serve(reader, writer))
        handlers.add(task)
        task.add_done_callback(handlers.discard)
        task.add_done_callback(lambda _: writer.close())  # also of one that was cancelled before it began

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    remote.port = server.sockets[0].getsockname()[1]
    try:
        yield remote
    finally:
        server.close()
        for task in list(handlers):
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await server.wait_closed()


def answering(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def delivered_once(*script: Remote.Item, **changes: Any) -> tuple[AttemptResult, Remote]:
    async with serving(*script) as remote, delivering(**changes) as deliverer:
        return await deliverer.deliver(MESSAGE, remote.url, KEY), remote


def verify(got: Got, path: str) -> None:
    """By the draft's text, with nothing of ours."""
    headers = got.headers
    parameters = dict(item.split("=", 1) for item in headers["signature"].split(","))
    assert list(parameters) == ["keyId", "algorithm", "headers", "signature"]
    assert parameters["headers"] == '"(request-target) host date digest"'
    signed = (f"{name}: {headers[name]}" for name in ("host", "date", "digest"))
    base = "\n".join([f"(request-target): post {path}", *signed])
    RSA.public_key().verify(
        base64.b64decode(parameters["signature"].strip('"')),
        base.encode(),
        padding.PKCS1v15(),
        hashes.SHA256(),
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(got.body)
    assert headers["digest"] == "SHA-256=" + base64.b64encode(digest.finalize()).decode()


async def test_the_body_arrives_byte_for_byte_under_a_valid_signature() -> None:
    result, remote = await delivered_once(ACCEPTED)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.DELIVERED, Reason.OK)
    assert (result.attempt.status, result.url) == (202, remote.url)
    assert len(remote.got) == 1
    got = remote.got[0]
    assert got.body == BODY
    verify(got, "/inbox")
    assert Verifier(RSA.public_key(), "POST", remote.url, got.headers, got.body).verify(True) == KEY_ID


async def test_the_request_has_these_headers_and_no_others() -> None:
    _, remote = await delivered_once(ACCEPTED, user_agent="fedsvc/test (+https://me.example)")
    got = remote.got[0]
    assert got.head.startswith(b"POST /inbox HTTP/1.1\r\n")
    names = [line.split(b":")[0].decode() for line in got.head.split(b"\r\n")[1:-2]]
    about_us = ["User-Agent", "Accept", "Accept-Encoding"]
    about_it = ["Host", "Date", "Digest", "Content-Type", "Content-Length", "Signature"]
    assert sorted(names) == sorted(about_us + about_it)
    assert got.headers["host"] == f"127.0.0.1:{remote.port}"
    assert got.headers["content-type"] == "application/activity+json"
    assert got.headers["accept-encoding"] == "identity"
    assert got.headers["user-agent"] == "fedsvc/test (+https://me.example)"


@pytest.mark.parametrize("path", ["/inbox?x=1&y=%2F", "/a//b/./../c;p=1/%7Eu?q=a+b&q=%20", "/?", "/%C3%BC"])
async def test_path_and_query_are_sent_as_they_are_in_the_inbox(path: str) -> None:
    async with serving(ACCEPTED) as remote, delivering() as deliverer:
        await deliverer.deliver(MESSAGE, f"http://127.0.0.1:{remote.port}{path}", KEY)
        sent = path.removesuffix("?")
        assert remote.got[0].head.startswith(f"POST {sent} HTTP/1.1\r\n".encode())
        verify(remote.got[0], sent)


async def test_a_body_over_a_mebibyte_arrives_whole() -> None:
    body = b'{"x": "' + b"a" * 1_500_000 + b'"}'
    async with serving(ACCEPTED) as remote, delivering() as deliverer:
        result = await deliverer.deliver(message_of(body), remote.url, KEY)
        assert result.verdict.outcome is Outcome.DELIVERED
        assert remote.got[0].body == body
        verify(remote.got[0], "/inbox")


async def test_an_aiohttp_server_takes_it_too() -> None:
    async def inbox(request: web.Request) -> web.Response:
        assert await request.read() == BODY
        headers = dict(request.headers)
        key_id = Verifier(RSA.public_key(), "POST", str(request.url), headers, BODY).verify(True)
        assert key_id == KEY_ID
        return web.json_response({"success": True})

    app = web.Application()
    app.router.add_post("/inbox", inbox)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with delivering() as deliverer:
            result = await deliverer.deliver(MESSAGE, f"http://127.0.0.1:{port}/inbox", KEY)
            assert result.verdict.status == 200
    finally:
        await runner.cleanup()


async def test_connections_are_kept_alive_between_deliveries() -> None:
    async with serving(ACCEPTED) as remote, delivering() as deliverer:
        for _ in range(5):
            assert (await deliverer.deliver(MESSAGE, remote.url, KEY)).verdict.status == 202
        assert remote.connections == 1


async def test_every_attempt_is_signed_afresh() -> None:
    async with serving(ACCEPTED) as remote:
        signer = Signer(1)
        now = [1_795_431_600.0]
        settings = Settings.from_environment({}, allow_http=True, allowed_cidrs="127.0.0.0/8")
        deliverer = Deliverer(settings, signer, lambda: now[0])
        await deliverer.start()
        await deliverer.deliver(MESSAGE, remote.url, KEY)
        now[0] += 90
        await deliverer.deliver(MESSAGE, remote.url, KEY)
        await deliverer.close()
        signer.close()
        assert [got.headers["date"] for got in remote.got] == [
            "Mon, 23 Nov 2026 11:00:00 GMT",
            "Mon, 23 Nov 2026 11:01:30 GMT",
        ]
        for got in remote.got:
            verify(got, "/inbox")


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (400, Outcome.PERMANENT, Reason.BAD_REQUEST),
        (401, Outcome.RETRY, Reason.UNAUTHORIZED),
        (404, Outcome.PERMANENT, Reason.NOT_FOUND),
        (410, Outcome.PERMANENT, Reason.GONE),
        (413, Outcome.PERMANENT, Reason.TOO_LARGE),
        (500, Outcome.RETRY, Reason.SERVER_ERROR),
        (503, Outcome.RETRY, Reason.UNAVAILABLE),
    ],
)
async def test_a_refusal_comes_back_with_its_snippet(status: int, outcome: Outcome, reason: Reason) -> None:
    result, _ = await delivered_once(answering(status, b'{"error":"community_has_no_followers"}'))
    verdict = result.verdict
    assert (verdict.outcome, verdict.reason, verdict.status) == (outcome, reason, status)
    size = f" (the activity has {len(BODY)} bytes)" if status == 413 else ""
    assert verdict.snippet == '{"error":"community_has_no_followers"}' + size


async def test_retry_after_reaches_the_verdict() -> None:
    result, _ = await delivered_once(answering(429, Retry_After="17"))
    assert (result.verdict.reason, result.verdict.retry_after_ms) == (Reason.RATE_LIMITED, 17_000)


async def test_a_snippet_is_the_first_kibibyte_of_a_long_body() -> None:
    result, _ = await delivered_once(answering(500, b"e" * 50_000))
    assert result.verdict.snippet == "e" * 1024


async def test_a_compressed_answer_is_not_unpacked() -> None:
    bomb = b"\x1f\x8b\x08\x00" + b"\x00" * 100
    result, _ = await delivered_once(answering(500, bomb, Content_Encoding="gzip"))
    assert result.verdict.status == 500
    assert result.verdict.snippet.isprintable()


# -- redirects


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_is_followed_and_signed_for_its_target(status: int) -> None:
    async with serving(ACCEPTED) as target:
        where = f"http://127.0.0.1:{target.port}/new?box=1"
        async with serving(answering(status, Location=where)) as first, delivering() as deliverer:
            result = await deliverer.deliver(MESSAGE, first.url, KEY)
        assert (result.verdict.status, result.url) == (202, where)
        verify(first.got[0], "/inbox")
        verify(target.got[0], "/new?box=1")
        assert target.got[0].headers["host"] == f"127.0.0.1:{target.port}"
        assert target.got[0].body == BODY


async def test_a_relative_redirect_is_resolved() -> None:
    result, remote = await delivered_once(answering(308, Location="../other"), ACCEPTED)
    assert result.verdict.status == 202
    verify(remote.got[1], "/other")


async def test_the_body_of_a_redirect_is_not_waited_for() -> None:
    endless = b"HTTP/1.1 307 x\r\nLocation: /other\r\nTransfer-Encoding: chunked\r\n\r\n"
    result, remote = await delivered_once(endless, ACCEPTED)
    assert result.verdict.status == 202
    assert remote.connections == 2


async def test_three_redirects_are_followed_and_a_fourth_is_not() -> None:
    hop = answering(307, Location="/again")
    result, remote = await delivered_once(hop, hop, hop, ACCEPTED)
    assert result.verdict.outcome is Outcome.DELIVERED
    result, remote = await delivered_once(hop)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.PERMANENT, Reason.TOO_MANY_REDIRECTS)
    assert len(remote.got) == 4


async def test_the_fragment_of_a_redirect_is_not_sent() -> None:
    result, remote = await delivered_once(answering(307, Location="/other#top"), ACCEPTED)
    assert result.verdict.status == 202
    verify(remote.got[1], "/other")


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a_redirect_that_would_change_the_method_is_not_followed(status: int) -> None:
    result, remote = await delivered_once(answering(status, Location="https://new.example/inbox"))
    verdict = result.verdict
    assert (verdict.outcome, verdict.reason, verdict.status) == (Outcome.PERMANENT, Reason.REDIRECTED, status)
    assert verdict.detail == "to https://new.example/inbox"
    assert len(remote.got) == 1


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://10.0.0.1/inbox", Reason.ADDRESS_REFUSED),
        ("http://169.254.169.254/latest/meta-data/", Reason.ADDRESS_REFUSED),
        ("http://[::1]:6379/", Reason.ADDRESS_REFUSED),
        ("ftp://127.0.0.1/inbox", Reason.REDIRECTED),
        ("http://user:secret@127.0.0.1/inbox", Reason.REDIRECTED),
        ("http://[bad/", Reason.REDIRECTED),
    ],
)
async def test_a_redirect_is_checked_as_a_new_destination(location: str, reason: Reason) -> None:
    result, remote = await delivered_once(answering(307, Location=location))
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.PERMANENT, reason)
    assert len(remote.got) == 1


# -- what a remote may not do to us


async def test_a_host_that_never_answers_is_left_at_the_deadline() -> None:
    result, _ = await delivered_once(hang, delivery_timeout=0.2)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.TIMEOUT)
    assert 200 <= result.latency_ms < 5000


async def test_a_head_that_drips_is_left_at_the_same_deadline() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 202 Accepted\r\n")
        while not writer.is_closing():
            writer.write(b"X-Drip: 1\r\n")
            await asyncio.sleep(0.02)

    result, _ = await delivered_once(drip, delivery_timeout=0.2)
    assert result.verdict.reason is Reason.TIMEOUT


async def test_an_endless_body_is_dropped_and_the_status_stands() -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"1000\r\n" + b"e" * 4096 + b"\r\n")
            await writer.drain()

    result, _ = await delivered_once(pour)
    assert (result.verdict.status, result.verdict.snippet) == (500, "e" * 1024)
    assert result.latency_ms < 3000


async def test_a_body_that_hangs_is_not_waited_for_and_the_status_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport_module, "BODY_WAIT_S", 0.1)

    async def stop_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 x\r\nContent-Length: 1000\r\n\r\nno such user")
        await hang(reader, writer)

    result, _ = await delivered_once(stop_short)
    verdict = result.verdict
    assert (verdict.outcome, verdict.status, verdict.snippet) == (Outcome.PERMANENT, 404, "no such user")
    assert result.latency_ms < 5000


async def test_a_body_that_breaks_off_does_not_change_the_status() -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 202 x\r\nContent-Length: 1000\r\n\r\nok")
        writer.close()

    result, _ = await delivered_once(break_off)
    assert result.verdict.outcome is Outcome.DELIVERED


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"HTTP/1.1 abc def\r\n\r\n",
        b"HTTP/1.1 202 x\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 202 x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"\x16\x03\x01\x00\x05hello",
        b"HTTP/1.1 202 x\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
        b"HTTP/1.1 202 x\r\n" + b"X: 1\r\n" * 200 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 202 x\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 4000) for n in range(10)) + b"\r\n",
    ],
    ids=["no-http", "no-status", "bad-length", "two-lengths", "tls", "long-field", "many-fields", "big-head"],
)
async def test_an_answer_that_is_not_http_or_too_big_is_a_protocol_error(head: bytes) -> None:
    result, _ = await delivered_once(head)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.PROTOCOL_ERROR)
    assert result.verdict.status == 0


async def test_a_big_head_within_the_limit_is_read() -> None:
    big = answering(202, b"", **{f"X_{n}": "a" * 4000 for n in range(7)})
    result, _ = await delivered_once(big)
    assert result.verdict.status == 202


async def test_cookies_are_not_kept() -> None:
    async with serving(answering(202, Set_Cookie="a=b; Path=/")) as remote, delivering() as deliverer:
        for _ in range(2):
            await deliverer.deliver(MESSAGE, remote.url, KEY)
        assert all("cookie" not in got.headers for got in remote.got)


# -- connections


async def test_a_refused_connection_is_told() -> None:
    async with serving(ACCEPTED) as remote:
        url = remote.url
    async with delivering() as deliverer:
        result = await deliverer.deliver(MESSAGE, url, KEY)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.CONNECT_FAILED)
    assert result.verdict.counts_against_host


async def test_a_new_connection_that_closes_without_an_answer_is_tried_once() -> None:
    result, remote = await delivered_once(None)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.CONNECTION_RESET)
    assert len(remote.got) == 1


async def test_a_kept_connection_that_closes_as_we_send_is_replaced_at_once() -> None:
    async with serving(ACCEPTED, None, ACCEPTED) as remote, delivering() as deliverer:
        await deliverer.deliver(MESSAGE, remote.url, KEY)
        result = await deliverer.deliver(MESSAGE, remote.url, KEY)
        assert result.verdict.outcome is Outcome.DELIVERED
        assert (remote.connections, len(remote.got)) == (2, 3)


async def test_a_connection_is_replaced_only_once() -> None:
    async with serving(ACCEPTED, None) as remote, delivering() as deliverer:
        await deliverer.deliver(MESSAGE, remote.url, KEY)
        result = await deliverer.deliver(MESSAGE, remote.url, KEY)
        assert result.verdict.reason is Reason.CONNECTION_RESET
        assert len(remote.got) == 3


async def test_a_connection_that_the_server_resets_is_told() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    result, _ = await delivered_once(reset)
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
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 that may serve as its own authority, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        built.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return path


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_an_https_inbox_of_a_private_authority_is_delivered_to(certificate: Path) -> None:
    async with (
        serving(ACCEPTED, tls=server_context(certificate)) as remote,
        delivering(ca_file=str(certificate), allow_http=False) as deliverer,
    ):
        for _ in range(2):
            result = await deliverer.deliver(MESSAGE, f"https://127.0.0.1:{remote.port}/inbox", KEY)
            assert result.verdict.status == 202
        verify(remote.got[0], "/inbox")
        assert remote.connections == 1


async def test_a_certificate_of_an_unknown_authority_is_refused(certificate: Path) -> None:
    async with serving(ACCEPTED, tls=server_context(certificate)) as remote, delivering() as deliverer:
        result = await deliverer.deliver(MESSAGE, f"https://127.0.0.1:{remote.port}/inbox", KEY)
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.TLS_FAILED)
        assert remote.got == []


async def test_a_certificate_for_another_name_is_refused(certificate: Path) -> None:
    async with (
        serving(ACCEPTED, tls=server_context(certificate)) as remote,
        delivering(ca_file=str(certificate)) as deliverer,
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
    signer = Signer(1)
    deliverer = Deliverer(Settings.from_environment({}, ca_file="/nowhere/ca.pem"), signer)
    with pytest.raises(OSError, match="No such file"):
        await deliverer.start()
    await deliverer.close()
    signer.close()


# -- ourselves


async def test_a_defect_of_ours_is_a_verdict_and_does_not_blame_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def failing(*_: object) -> None:
        raise ZeroDivisionError

    async with serving(ACCEPTED) as remote, delivering(host_concurrency=1) as deliverer:
        with monkeypatch.context() as broken:
            broken.setattr(transport_module.Transport, "post", failing)
            result = await deliverer.deliver(MESSAGE, remote.url, KEY)
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.WORKER_ERROR)
        assert not result.verdict.counts_against_host
        assert (await deliverer.deliver(MESSAGE, remote.url, KEY)).verdict.status == 202


async def test_a_cancelled_delivery_ends_at_once_and_gives_its_slot_back() -> None:
    async with serving(hang, ACCEPTED) as remote, delivering(host_concurrency=1) as deliverer:
        first = asyncio.create_task(deliverer.deliver(MESSAGE, remote.url, KEY))
        async with asyncio.timeout(5):
            while not remote.got:
                await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await deliverer.deliver(MESSAGE, remote.url, KEY)).verdict.status == 202
