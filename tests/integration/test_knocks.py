"""Servers that do not take the first form of signature: knocked again, and remembered with their host."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from apsig.draft import Verifier
from servers.inbox import InboxServer
from servers.queue import Queue

from fedsvc.config import Settings
from fedsvc.domain.classify import Outcome
from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.domain.keys import PrivateKey, load_private_key
from fedsvc.domain.knock import Dialect
from fedsvc.domain.message import Message
from fedsvc.worker.deliverer import AttemptResult, Deliverer
from fedsvc.worker.signer import Signer

BODY = b'{"id":"https://me.example/1","type":"Like","actor":"https://me.example/u/x","object":"https://a.example/1"}'
Judge = Callable[[web.BaseRequest], web.Response]
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def key(rsa_pem: str) -> PrivateKey:
    return load_private_key(rsa_pem)


@asynccontextmanager
async def inbox_that(judge: Judge) -> AsyncIterator[InboxServer]:
    async with InboxServer() as inbox:

        async def answer(host: str, body: bytes) -> web.Response:
            return judge(inbox.requests[-1])

        inbox.answer = answer
        yield inbox


async def attempt(
    url: str, key: PrivateKey, dialect: Dialect = Dialect.UNKNOWN, digest: str = Message.digest_of(BODY)
) -> AttemptResult:
    settings = Settings.from_environment({}, allow_http=True, allowed_cidrs="127.0.0.0/8")
    signer = Signer(1, 2)
    deliverer = Deliverer(settings, signer)
    await deliverer.start()
    message = Message(
        BODY, "https://me.example/1", "Like", "https://me.example/u/x", "https://me.example/u/x#main-key",
        key.fingerprint, "me.example", digest=digest,
    )  # fmt: skip
    try:
        return await deliverer.deliver(message, url, key, dialect=dialect)
    finally:
        await deliverer.close()
        signer.close()


def forms(inbox: InboxServer) -> list[str]:
    return ["rfc9421" if "Signature-Input" in r.headers else "cavage" for r in inbox.requests]


def only_rfc9421(request: web.BaseRequest) -> web.Response:
    return web.Response(status=202 if "Signature-Input" in request.headers else 401)


def only_cavage(request: web.BaseRequest) -> web.Response:
    return web.Response(status=401 if "Signature-Input" in request.headers else 202)


async def test_rfc_9421_upon_a_refusal_and_the_host_is_known_by_it(key: PrivateKey) -> None:
    async with inbox_that(only_rfc9421) as inbox:
        result = await attempt(inbox.url(), key)
        assert (result.verdict.outcome, result.learnt) == (Outcome.DELIVERED, Dialect.RFC9421)
        assert forms(inbox) == ["cavage", "rfc9421"]
        result = await attempt(inbox.url(), key, result.learnt)
        assert (result.verdict.outcome, result.learnt) == (Outcome.DELIVERED, Dialect.UNKNOWN)
        assert forms(inbox) == ["cavage", "rfc9421", "rfc9421"], "what is remembered goes first"


async def test_the_digest_is_that_which_was_made_with_the_message(key: PrivateKey) -> None:
    """However many inboxes and knocks there are, nobody hashes the body again."""
    marked = Message.digest_of(b"not the body")
    async with inbox_that(lambda _: web.Response(status=401)) as inbox:
        await attempt(inbox.url(), key, digest=marked)
        first, second = inbox.requests
        assert first.headers["Digest"] == f"SHA-256={marked}"
        assert second.headers["Content-Digest"] == f"sha-256=:{marked}:"


async def test_a_host_that_went_back_to_cavage_is_known_by_that(key: PrivateKey) -> None:
    async with inbox_that(only_cavage) as inbox:
        result = await attempt(inbox.url(), key, Dialect.RFC9421)
        assert (result.verdict.outcome, result.learnt) == (Outcome.DELIVERED, Dialect.CAVAGE)
        assert forms(inbox) == ["rfc9421", "cavage"]


@pytest.mark.parametrize(
    ("status", "body", "knocks", "reason"),
    [
        (401, b"", 2, Reason.UNAUTHORIZED),
        (403, b"", 2, Reason.FORBIDDEN),
        (400, b"invalid Signature", 2, Reason.BAD_REQUEST),
        (400, b"invalid JSON", 1, Reason.BAD_REQUEST),
        (404, b"", 1, Reason.NOT_FOUND),
        (500, b"signature", 1, Reason.SERVER_ERROR),
    ],
)
async def test_only_refusals_are_knocked_again(
    key: PrivateKey, status: int, body: bytes, knocks: int, reason: Reason
) -> None:
    async with inbox_that(lambda _: web.Response(status=status, body=body)) as inbox:
        result = await attempt(inbox.url(), key)
        assert (len(inbox.requests), result.verdict.reason) == (knocks, reason)
        assert result.learnt is Dialect.UNKNOWN


@pytest.mark.parametrize("status", [400, 500])
async def test_the_first_refusal_counts_where_the_other_form_is_not_understood(
    key: PrivateKey, status: int
) -> None:
    def judge(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status if "Signature-Input" in request.headers else 401)

    async with inbox_that(judge) as inbox:
        verdict = (await attempt(inbox.url(), key)).verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.RETRY, Reason.UNAUTHORIZED)
    assert not verdict.counts_against_host


async def test_a_server_that_fails_over_the_form_that_others_take_is_to_blame(key: PrivateKey) -> None:
    def judge(request: web.BaseRequest) -> web.Response:
        return web.Response(status=401 if "Signature-Input" in request.headers else 500)

    async with inbox_that(judge) as inbox:
        verdict = (await attempt(inbox.url(), key, Dialect.RFC9421)).verdict
    assert (verdict.reason, verdict.counts_against_host) == (Reason.SERVER_ERROR, True)


@pytest.mark.parametrize(("status", "reason"), [(404, Reason.NOT_FOUND), (410, Reason.GONE)])
async def test_an_inbox_that_is_gone_is_told_in_the_form_that_is_understood(
    key: PrivateKey, status: int, reason: Reason
) -> None:
    def judge(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status if "Signature-Input" in request.headers else 401)

    async with inbox_that(judge) as inbox:
        verdict = (await attempt(inbox.url(), key)).verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.PERMANENT, reason)
    assert verdict.inbox_gone == (status == 410)


@pytest.mark.parametrize("status", [401, 400, 500])
async def test_an_inbox_with_a_query_may_be_verified_by_its_path(key: PrivateKey, status: int) -> None:
    """As PieFed does: it verifies the path alone. Whatever it says to a form that it does not know."""

    def judge(request: web.BaseRequest) -> web.Response:
        if "Signature-Input" in request.headers:
            return web.Response(status=status)
        verifier = Verifier(
            key.public_pem, "POST", str(request.url.with_query(None)), dict(request.headers), BODY
        )
        return web.Response(status=202 if verifier.verify() else 401)

    async with inbox_that(judge) as inbox:
        result = await attempt(inbox.url(path="/inbox?x=1"), key)
        assert (result.verdict.outcome, result.learnt) == (Outcome.DELIVERED, Dialect.CAVAGE_PATH)
        assert forms(inbox) == ["cavage", "rfc9421", "cavage"]
        assert all(request.path_qs == "/inbox?x=1" for request in inbox.requests), "it is sent all the same"


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_accept_signature_is_honoured_with_its_nonce(key: PrivateKey, status: int) -> None:
    def judge(request: web.BaseRequest) -> web.Response:
        told = request.headers.get("Signature-Input", "")
        if re.fullmatch(
            r'ask=\("@authority" "@target-uri" "content-digest"\);created=\d+;keyid="[^"]+";nonce="n1"', told
        ):
            return web.Response(status=202)
        return web.Response(status=status, headers={"Accept-Signature": 'ask=("@authority");nonce="n1"'})

    async with inbox_that(judge) as inbox:
        result = await attempt(inbox.url(), key)
        assert (result.verdict.outcome, result.learnt) == (Outcome.DELIVERED, Dialect.RFC9421_FULL)
        assert forms(inbox) == ["cavage", "rfc9421"]
        result = await attempt(inbox.url(), key, Dialect.RFC9421_FULL)
        assert result.verdict.outcome is Outcome.DELIVERED
        assert len(inbox.requests) == 4, "a nonce has to be asked for each time"


async def test_a_nonce_that_is_asked_for_beside_no_more_than_the_default_is_given_each_time(
    key: PrivateKey,
) -> None:
    nonces = [f"n{n}" for n in range(9)]

    def judge(request: web.BaseRequest) -> web.Response:
        told = request.headers.get("Signature-Input", "")
        if told.endswith(f';nonce="{nonces[0]}"'):
            return web.Response(status=202)
        del nonces[0]
        asked = f'sig1=("@method" "@target-uri" "content-digest");created;nonce="{nonces[0]}"'
        return web.Response(status=401, headers={"Accept-Signature": asked})

    dialect = Dialect.UNKNOWN
    async with inbox_that(judge) as inbox:
        for _ in range(3):
            result = await attempt(inbox.url(), key, dialect)
            assert result.verdict.outcome is Outcome.DELIVERED, "also when the host is known by its form"
            dialect = result.learnt or dialect
        assert len(inbox.requests) == 6


async def test_where_it_redirects_to_is_knocked_by_itself(key: PrivateKey) -> None:
    async with inbox_that(only_rfc9421) as second:
        location = second.url()
        async with inbox_that(lambda _: web.Response(status=308, headers={"Location": location})) as first:
            result = await attempt(first.url(), key, Dialect.RFC9421)
    assert (result.verdict.outcome, result.learnt) == (Outcome.DELIVERED, Dialect.UNKNOWN)
    assert (forms(first), forms(second)) == (["rfc9421"], ["cavage", "rfc9421"])


async def test_a_redirect_within_a_host_is_signed_as_the_host_is_known_to_take_it(key: PrivateKey) -> None:
    def judge(request: web.BaseRequest) -> web.Response:
        if request.path == "/inbox":
            return web.Response(status=307, headers={"Location": "/inbox/"})
        return only_rfc9421(request)

    async with inbox_that(judge) as inbox:
        result = await attempt(inbox.url(), key)
        assert (result.verdict.outcome, result.learnt) == (Outcome.DELIVERED, Dialect.RFC9421)
        assert forms(inbox) == ["cavage", "cavage", "rfc9421"]
        await attempt(inbox.url(), key, result.learnt)
        assert forms(inbox)[3:] == ["rfc9421", "rfc9421"]


async def test_a_hosts_form_is_remembered_for_all_workers_and_forgotten_in_time(queue: Queue) -> None:
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    assert admitted.dialect is Dialect.UNKNOWN
    await queue.settle(admitted, DeliveryState.DELIVERED, learnt=Dialect.RFC9421)
    await queue.enqueue("2")
    (admitted,) = await queue.admit(1, worker="b")
    assert admitted.dialect is Dialect.RFC9421
    await queue.deliver(admitted)
    await queue.pass_time(7 * DAY_MS + 1000)
    await queue.enqueue("3")
    (admitted,) = await queue.admit(1)
    assert admitted.dialect is Dialect.UNKNOWN, "the first form gets another chance"
    await queue.deliver(admitted)
