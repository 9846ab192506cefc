"""Requests of ours, from a real socket, before verifiers that are not ours; and that these would refuse."""

from __future__ import annotations

import re
from collections.abc import Callable

import orjson
import pytest
from apsig.exceptions import VerificationFailedError
from apsig.rfc9421 import RFC9421Verifier

from fedsvc.domain.classify import Outcome
from fedsvc.domain.knock import Dialect
from interop.sender import ACTIVITY, captured, deliver, proved, public_key
from interop.verifiers import (
    VERIFIERS,
    Inboxes,
    Scheme,
    Verifier,
    body_for,
    captured_for,
    key_for,
    signed_as,
)
from interop.wire import Answer, Request, recording, send

pytestmark = pytest.mark.asyncio(loop_scope="module")

KNOWN = [
    pytest.param(verifier, scheme, id=f"{verifier.name}-{scheme.name}")
    for verifier in VERIFIERS
    for scheme in Scheme
    if scheme in verifier.knows
]
UNKNOWN = [
    pytest.param(verifier, scheme, id=f"{verifier.name}-{scheme.name}")
    for verifier in VERIFIERS
    for scheme in Scheme
    if scheme not in verifier.knows
]
ALL = pytest.mark.parametrize(("verifier", "scheme"), KNOWN)


async def test_each_scheme_is_known_to_three_verifiers() -> None:
    known = {scheme: sum(scheme in verifier.knows for verifier in VERIFIERS) for scheme in Scheme}
    assert min(known.values()) >= 3, known


@ALL
async def test_the_first_knock_is_taken(inboxes: Inboxes, verifier: Verifier, scheme: Scheme) -> None:
    result = await deliver(
        f"https://{verifier.host_for(scheme)}/inbox", key_for(scheme), scheme.dialect,
        body=body_for(scheme), signed_as=signed_as(scheme),
    )  # fmt: skip
    assert (result.verdict.outcome, result.verdict.status) == (Outcome.DELIVERED, 202), result.verdict
    assert result.learnt is Dialect.UNKNOWN, "there was no second knock"


@pytest.mark.parametrize(("verifier", "scheme"), UNKNOWN)
async def test_a_scheme_that_is_not_known_is_refused(
    inboxes: Inboxes, verifier: Verifier, scheme: Scheme
) -> None:
    host = verifier.host_for(scheme)
    answer = await send(await captured_for(verifier, scheme), host, inboxes.ports[host])
    assert answer.status == 401, answer


def another_body(request: Request) -> Request:
    return request._replace(body=request.body.replace(b"Hello", b"Hallo"))


def another_path(request: Request) -> Request:
    return request._replace(target="/u/bob/inbox")


def another_time(request: Request) -> Request:
    """An hour would be too old by itself; a second is not."""
    if (told := request.get("Signature-Input")) is not None:
        created = re.search(r"created=(\d+)", told)
        assert created is not None
        return request.having(signature_input=told.replace(created[1], str(int(created[1]) - 1)))
    date = request.get("Date")
    assert date is not None
    second = (int(date[-6:-4]) + 1) % 60
    return request.having(date=f"{date[:-6]}{second:02}{date[-4:]}")


def another_signature(request: Request) -> Request:
    """One character of it."""
    signature = request.get("Signature")
    assert signature is not None
    found = re.search(r"[A-Za-z0-9+/]{60,}", signature)
    assert found is not None
    at = found.start() + 10
    other = "A" if signature[at] != "A" else "B"
    return request.having(signature=signature[:at] + other + signature[at + 1 :])


@ALL
async def test_a_changed_body_is_refused(inboxes: Inboxes, verifier: Verifier, scheme: Scheme) -> None:
    await refuses(inboxes, verifier, scheme, another_body)


@pytest.mark.parametrize(
    "change", [another_path, another_time, another_signature], ids=["path", "time", "signature"]
)
@pytest.mark.parametrize(
    ("verifier", "scheme"), [known for known in KNOWN if known.values[1] is not Scheme.PROOF]
)
async def test_a_changed_request_is_refused(
    inboxes: Inboxes, verifier: Verifier, scheme: Scheme, change: Callable[[Request], Request]
) -> None:
    await refuses(inboxes, verifier, scheme, change)


async def refuses(
    inboxes: Inboxes, verifier: Verifier, scheme: Scheme, change: Callable[[Request], Request]
) -> None:
    """It takes the request as it was sent, and not as it was changed."""
    host = verifier.host_for(scheme)
    request = await captured_for(verifier, scheme)
    changed = change(request)
    assert changed != request
    answer = await send(changed, host, inboxes.ports[host])
    assert answer.status == 401, answer
    answer = await send(request, host, inboxes.ports[host])
    assert answer.status == 202, answer


@ALL
async def test_another_key_is_refused(inboxes: Inboxes, verifier: Verifier, scheme: Scheme) -> None:
    host = verifier.host_for(scheme)
    request = await captured_for(verifier, scheme, "eve")
    answer = await send(request, host, inboxes.ports[host])
    assert answer.status == 401, answer


@pytest.mark.parametrize("host", ["fedify.example", "apsig-proofs.example"])
async def test_a_proof_holds_also_for_an_activity_with_terms_of_its_own(inboxes: Inboxes, host: str) -> None:
    """Not for Digital Bazaar's library, which compares contexts that are objects by which object they are."""
    terms = {"toot": "http://joinmastodon.org/ns#", "sensitive": "as:sensitive"}
    activity = ACTIVITY | {"@context": [ACTIVITY["@context"], terms], "sensitive": True}
    body = proved(body=orjson.dumps(activity))
    scheme = Scheme.PROOF
    request = await captured(
        f"https://{host}/inbox", host, key_for(scheme), body=body, signed_as=signed_as(scheme)
    )
    assert (await send(request, host, inboxes.ports[host])).status == 202
    assert (await send(another_body(request), host, inboxes.ports[host])).status == 401


async def test_apsig_does_not_verify_rfc_9421_with_a_target_uri() -> None:
    """Nor without `alg`; it is asked for here as apsig would have it."""
    host = "remote.example"
    asked = 'sig1=("@method" "@path" "@authority" "content-digest");created;keyid;alg="rsa-v1_5-sha256"'

    def judge(request: Request) -> Answer:
        ours = "Signature-Input" in dict(request.fields)
        return Answer(202) if ours else Answer(401, (("Accept-Signature", asked),))

    async with recording(judge, (host,)) as recorder:
        assert (await deliver(f"https://{host}/inbox")).verdict.outcome is Outcome.DELIVERED
    request = recorder.requests[-1]
    key = public_key("rsa")
    with pytest.raises(VerificationFailedError):
        RFC9421Verifier(key, "POST", request.target, host, dict(request.fields)).verify(raise_on_fail=True)
    told = request.get("Signature-Input")
    assert told is not None
    assert 'alg="rsa-v1_5-sha256"' in told
