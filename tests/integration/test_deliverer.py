"""Deliveries to real servers on loopback: what arrives, and what becomes of every kind of answer."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from aiohttp import web
from apsig.draft import Verifier
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from servers.remote import (
    ACCEPTED,
    KEY_ID,
    Got,
    Item,
    Remote,
    answering,
    delivering,
    hang,
    message_of,
    once,
    serving,
)  # fmt: skip

from fedsvc.config import Settings
from fedsvc.domain.classify import Outcome, words
from fedsvc.domain.delivery import Reason
from fedsvc.domain.keys import PrivateKey, load_private_key
from fedsvc.worker import transport as transport_module
from fedsvc.worker.deliverer import AttemptResult, Deliverer
from fedsvc.worker.signer import Signer

RSA = rsa.generate_private_key(65537, 2048)
KEY = load_private_key(
    RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
)
BODY = '{"id": "https://me.example/activities/1",  "type":"Like", "é": "\u2028"}\n'.encode()
MESSAGE = message_of(BODY, KEY)


async def delivered_once(*script: Item, **changes: Any) -> tuple[AttemptResult, Remote]:
    return await once(*script, message=MESSAGE, key=KEY, **changes)


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
        signer = Signer(1, 2)
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
    assert words(verdict) == '{"error":"community_has_no_followers"}' + size


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


async def test_a_signature_that_comes_too_late_does_not_blame_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def late(self: Signer, key: PrivateKey, data: bytes, *, urgent: bool = False) -> bytes:
        await asyncio.sleep(0.2)
        return key.sign(data)

    monkeypatch.setattr(Signer, "sign", late)
    result, remote = await once(ACCEPTED, delivery_timeout=0.1)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.RETRY, Reason.WORKER_ERROR)
    assert not result.verdict.counts_against_host
    assert remote.got == []


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
