"""Requests as they leave a socket, verified by code that is not ours: apsig, a Python library.

Its quirks, pinned here so that a change of them is noticed:
- it verifies the path without the query (as PieFed and older Pleroma do; the draft, Mastodon and Lemmy
  want the query);
- it splits `Signature` at every comma, also within a quoted key id;
- it knows rsa-sha256 only, so that it cannot tell anything of Ed25519 keys.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import ParseResult, urlparse

import pytest
from aiohttp import web
from apsig.draft import Verifier
from apsig.exceptions import VerificationFailedError
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from servers.remote import KEY_ID, delivering, message_of

from fedsvc.domain.keys import load_private_key

RSA = rsa.generate_private_key(65537, 2048)
KEY = load_private_key(
    RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
)
BODY = '{"id":"https://me.example/a/1","type":"Create","content":"naïve \\u2028"}'.encode()


class Received(NamedTuple):
    url: str  # as the server sees it: Host and request target
    headers: dict[str, str]
    body: bytes

    def verified(self, **changes: Any) -> str | None:
        """The key id, by apsig. Raises what it raises."""
        values = {"url": self.url, "headers": self.headers, "body": self.body} | changes
        key = values.pop("key", RSA.public_key())
        result = Verifier(key, "POST", **values).verify(raise_on_fail=True)
        assert result is None or isinstance(result, str)
        return result


class Inbox(NamedTuple):
    base: str
    received: list[Received]


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    received: list[Received] = []

    async def take(request: web.Request) -> web.Response:
        url = f"http://{request.headers['Host']}{request.raw_path}"
        received.append(Received(url, dict(request.headers), await request.read()))
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Inbox(f"http://127.0.0.1:{runner.addresses[0][1]}", received)
    await runner.cleanup()


async def sent(inbox: Inbox, path: str = "/inbox", key_id: str = KEY_ID) -> Received:
    message = replace(message_of(BODY, KEY), key_id=key_id)
    async with delivering() as deliverer:
        result = await deliverer.deliver(message, inbox.base + path, KEY)
    assert result.verdict.status == 202
    (received,) = inbox.received
    return received


@pytest.fixture
def with_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """apsig with the draft's request target: the path and the query."""

    def keeping_the_query(url: str) -> ParseResult:
        parsed = urlparse(url)
        path = f"{parsed.path}?{parsed.query}" if parsed.query else parsed.path
        return parsed._replace(path=path)

    monkeypatch.setattr("apsig.draft.verify.urlparse", keeping_the_query)


@pytest.mark.parametrize("path", ["/inbox", "/", "/u/bob/inbox", "/a//b/%7Euser/inbox"])
async def test_a_request_to_a_host_with_a_port_is_verified(inbox: Inbox, path: str) -> None:
    received = await sent(inbox, path)
    assert received.url == inbox.base + path
    assert received.headers["Host"] == inbox.base.removeprefix("http://")
    assert received.verified() == KEY_ID


@pytest.mark.usefixtures("with_query")
@pytest.mark.parametrize("path", ["/inbox?x=1", "/inbox?a=%2F&b=c+d", "/?q"])
async def test_a_request_with_a_query_is_verified_by_the_draft(inbox: Inbox, path: str) -> None:
    assert (await sent(inbox, path)).verified() == KEY_ID


async def test_apsig_itself_leaves_the_query_out(inbox: Inbox) -> None:
    received = await sent(inbox, "/inbox?x=1")
    with pytest.raises(VerificationFailedError):
        received.verified()


async def test_a_changed_body_is_noticed(inbox: Inbox) -> None:
    received = await sent(inbox)
    with pytest.raises(VerificationFailedError, match="Digest"):
        received.verified(body=BODY.replace(b"Create", b"Delete"))


@pytest.mark.parametrize("name", ["Host", "Date", "Digest"])
async def test_a_changed_header_is_noticed(inbox: Inbox, name: str) -> None:
    received = await sent(inbox)
    headers = received.headers | {name: received.headers[name] + " "}
    with pytest.raises(VerificationFailedError):
        received.verified(headers=headers)


async def test_another_path_or_key_is_noticed(inbox: Inbox) -> None:
    received = await sent(inbox)
    with pytest.raises(VerificationFailedError):
        received.verified(url=inbox.base + "/other")
    with pytest.raises(VerificationFailedError):
        received.verified(key=rsa.generate_private_key(65537, 2048).public_key())


async def test_a_quoted_key_id_with_a_comma_is_too_much_for_apsig(inbox: Inbox) -> None:
    received = await sent(inbox, key_id="https://me.example/u/x,y#main-key")
    with pytest.raises(ValueError, match="unpack"):
        received.verified()
