"""Inboxes of all kinds, and which knock each verifier takes there."""

from __future__ import annotations

import time
from enum import Enum
from typing import Final, NamedTuple

from fedsvc.domain.classify import Outcome
from fedsvc.domain.knock import Dialect
from interop.profiles import Profile
from interop.sender import ACTOR, deliver, key_id, public_key
from interop.signed import PublicKey, Server
from interop.verifiers import Verifier
from interop.wire import ADDRESS, Answer, Request, recording


class Kind(Enum):
    """A title, the inbox, the host that is connected to, and what the inbox's server is configured as."""

    PLAIN = ("a path", "https://{host}example/inbox", "example", "example")
    QUERY = ("a query", "https://{host}example/inbox?x=1&y=%2F", "example", "example")
    PORT = ("a port", "https://{host}example:8443/inbox", "example", "example:8443")
    IDN = (
        "a name that is not ASCII", "https://{host}Bücher.example/inbox",
        "xn--bcher-kva.example", "xn--bcher-kva.example",
    )  # fmt: skip
    ADDRESS = ("an IPv6 address", f"https://[{ADDRESS}]/inbox", ADDRESS, f"[{ADDRESS}]")

    def __init__(self, title: str, url: str, domain: str, configured: str) -> None:
        self.title = title
        self.url = url
        self.domain = domain
        self.configured = configured

    def inbox(self, name: str) -> str:
        """At the server of that name."""
        return self.url.format(host=f"{name}.")

    def host(self, name: str) -> str:
        return self.domain if self is Kind.ADDRESS else f"{name}.{self.domain}"

    def server(self, name: str) -> str:
        return self.configured if self is Kind.ADDRESS else f"{name}.{self.configured}"


#: how a form is told of in the page
_TITLES: Final = {
    Dialect.UNKNOWN: "draft-cavage",
    Dialect.RFC9421: "RFC 9421",
    Dialect.CAVAGE_PATH: "draft-cavage, path alone",
    Dialect.RFC9421_FULL: "RFC 9421 as asked for",
}
_ORDINALS: Final = ("1st", "2nd", "3rd")
#: of a host that is new, of one that is remembered
Knocks = tuple[int, int]


class Visit(NamedTuple):
    """What came of two deliveries to an inbox, the second with what was learnt at the first."""

    knocks: Knocks
    learnt: Dialect

    def __str__(self) -> str:
        return f"{_ORDINALS[self.knocks[0] - 1]}: {_TITLES[self.learnt]}"


def judged_by(profile: Profile, host: str, requests: list[Request]) -> Answer:
    """Of the last of `requests`, by now's clock."""
    keys: dict[str, PublicKey] = {key_id(name): public_key(name) for name in ("rsa", "ed25519")}
    server = Server(host, time.time(), keys, {ACTOR: keys[key_id("rsa")]})
    refusal = profile.refusal(requests[-1], server)
    if refusal is None:
        return Answer(202)
    asked = (("Accept-Signature", profile.accept_signature),) if profile.accept_signature else ()
    return Answer(401, asked, refusal.encode())


async def visit_profile(profile: Profile, kind: Kind) -> Visit | None:
    """None: it has no such inboxes."""
    if kind is Kind.PORT and not profile.ports:
        return None
    async with recording(hosts=(kind.host("remote"),)) as recorder:
        recorder.judge = lambda _: judged_by(profile, kind.server("remote"), recorder.requests)
        first = await deliver(kind.inbox("remote"))
        assert first.verdict.outcome is Outcome.DELIVERED, (first, recorder.requests)
        new = len(recorder.requests)
        again = await deliver(kind.inbox("remote"), dialect=first.learnt)
        assert again.verdict.outcome is Outcome.DELIVERED, (again, recorder.requests)
    return Visit((new, len(recorder.requests) - new), first.learnt)


async def visit_verifier(verifier: Verifier, kind: Kind) -> Visit:
    """It must be serving. Others' inboxes do not count knocks: they follow from what was learnt."""
    name = verifier.host.partition(".")[0]
    first = await deliver(kind.inbox(name))
    assert first.verdict.outcome is Outcome.DELIVERED, first
    again = await deliver(kind.inbox(name), dialect=first.learnt)
    assert again.verdict.outcome is Outcome.DELIVERED, again
    assert again.learnt is Dialect.UNKNOWN, "what is remembered goes first, and is taken"
    order = (Dialect.UNKNOWN, Dialect.RFC9421, Dialect.CAVAGE_PATH)
    return Visit((order.index(first.learnt) + 1, 1), first.learnt)
