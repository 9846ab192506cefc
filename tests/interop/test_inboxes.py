"""Our deliverer before every profile and verifier, at inboxes of all kinds: what the first knock does not
open a next one does, and then the host is remembered by it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from servers.queue import Queue, open_queue
from servers.valkey import ValkeyServer

from fedsvc.domain.classify import Outcome
from fedsvc.domain.delivery import DeliveryState
from fedsvc.domain.knock import Dialect
from interop import profiles as rules
from interop.inboxes import Kind, Visit, judged_by, visit_profile, visit_verifier
from interop.profiles import PROFILES, Profile
from interop.sender import deliver, key_of
from interop.verifiers import PROOFS, VERIFIERS, Inboxes, Verifier
from interop.wire import Answer, Request, recording

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_ONCE = Visit((1, 1), Dialect.UNKNOWN)
PATH_ALONE = Visit((3, 1), Dialect.CAVAGE_PATH)
RFC9421 = Visit((2, 1), Dialect.RFC9421)
#: all others are opened by the first knock
EXCEPTIONS = {
    ("Lemmy", Kind.PORT): None,
    ("PieFed", Kind.QUERY): PATH_ALONE,
    ("Pleroma, older", Kind.QUERY): PATH_ALONE,
    ("Fedify", Kind.QUERY): Visit((2, 1), Dialect.RFC9421_FULL),
}
BY_NAME = {profile.name: profile for profile in PROFILES}


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
async def test_a_profile_takes_a_knock_and_the_next_delivery_begins_with_it(
    profile: Profile, kind: Kind
) -> None:
    expected = EXCEPTIONS.get((profile.name, kind), AT_ONCE)
    assert await visit_profile(profile, kind) == expected


@pytest.mark.parametrize(
    "kind", [kind for kind in Kind if kind is not Kind.ADDRESS], ids=lambda k: k.name.lower()
)
@pytest.mark.parametrize(
    "verifier", [v for v in VERIFIERS if v.knows != PROOFS], ids=lambda verifier: verifier.name
)
async def test_a_verifier_takes_a_knock_and_the_next_delivery_begins_with_it(
    inboxes: Inboxes, verifier: Verifier, kind: Kind
) -> None:
    if verifier.host == "pyauth.example":
        expected = RFC9421  # it knows nothing else
    elif kind is Kind.QUERY and verifier.name == "Fedify":
        expected = RFC9421
    elif kind is Kind.QUERY and verifier.name == "apsig":
        expected = PATH_ALONE
    else:
        expected = AT_ONCE
    assert await visit_verifier(verifier, kind) == expected


async def test_fedify_does_not_ask_who_signs_as_it_verifies(inboxes: Inboxes) -> None:
    result = await deliver("https://fedify-asks.example/inbox")
    assert (result.verdict.outcome, result.learnt) == (Outcome.DELIVERED, Dialect.UNKNOWN)


@pytest.mark.parametrize("algorithm", ["rsa", "ed25519"])
async def test_fedifys_challenge_is_answered_with_its_nonce_each_time(
    inboxes: Inboxes, algorithm: str
) -> None:
    """It does not take draft-cavage for an inbox with a query, and asks by name for what it takes."""
    inbox, key = "https://fedify-asks.example/inbox?x=1", key_of(algorithm)
    first = await deliver(inbox, key)
    assert (first.verdict.outcome, first.learnt) == (Outcome.DELIVERED, Dialect.RFC9421_FULL)
    again = await deliver(inbox, key, first.learnt)
    assert (again.verdict.outcome, again.learnt) == (Outcome.DELIVERED, Dialect.RFC9421_FULL)


@pytest.mark.parametrize(
    ("name", "learnt", "refusals"),
    [
        ("GoToSocial", Dialect.UNKNOWN, []),
        ("Fedify", Dialect.RFC9421_FULL, [rules.RIGHT]),
        ("Mastodon", None, [rules.RIGHT, rules.MESSAGE_RIGHT]),
        ("PieFed", None, [rules.RIGHT, rules.SIGNED]),
    ],
)
async def test_an_ed25519_key_opens_only_those_who_know_them(
    name: str, learnt: Dialect | None, refusals: list[str]
) -> None:
    profile = BY_NAME[name]
    told: list[str] = []

    def judge(_: Request) -> Answer:
        answer = judged_by(profile, "remote.example", recorder.requests)
        told.extend([answer.body.decode()] if answer.status == 401 else [])
        return answer

    async with recording(judge, ("remote.example",)) as recorder:
        result = await deliver("https://remote.example/inbox", key_of("ed25519"))
    assert told == refusals
    if learnt is None:
        assert (result.verdict.outcome, result.verdict.snippet) == (Outcome.RETRY, refusals[0])
    else:
        assert (result.verdict.outcome, result.learnt) == (Outcome.DELIVERED, learnt)


@pytest_asyncio.fixture(loop_scope="module")
async def queue(valkey: ValkeyServer, namespace: str) -> AsyncIterator[Queue]:
    async with open_queue(valkey.url, namespace) as opened:
        yield opened


@pytest.mark.parametrize(
    ("name", "refused"), [("PieFed", 2), ("Pleroma, older", 2), ("Fedify", 1), ("Lemmy", 0)]
)
async def test_what_a_host_with_a_query_takes_is_kept_for_all_workers(
    queue: Queue, name: str, refused: int
) -> None:
    """The whole way: admitted with what is remembered, delivered, settled with what was learnt."""
    profile = BY_NAME[name]
    async with recording(hosts=("h0.example",)) as recorder:
        recorder.judge = lambda _: judged_by(profile, "h0.example", recorder.requests)
        for number, worker in enumerate(("a", "b"), 1):
            recorder.requests.clear()
            await queue.enqueue(str(number), path="/inbox?x=1")
            (admitted,) = await queue.admit(1, worker=worker)
            result = await deliver(admitted.record.inbox, dialect=admitted.dialect)
            assert result.verdict.outcome is Outcome.DELIVERED
            assert len(recorder.requests) == 1 + (refused if number == 1 else 0)
            await queue.settle(admitted, DeliveryState.DELIVERED, learnt=result.learnt, worker=worker)
