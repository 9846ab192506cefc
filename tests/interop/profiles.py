"""What servers of the fediverse check of a delivery, as pure functions over a raw request.

Each rule is one that the server's source has, told in a few words; a request that breaks one is refused by
its name. What they do beside (blocking, fetching, parsing) is not here. Fedify runs itself in
`fedify/inbox.mjs`, too; that it verifies draft-cavage without the query was found there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from interop.signed import (
    Refused,
    Server,
    cavage,
    document,
    message_signatures,
    require,
    seconds,
    sha256,
    verifies,
    verifies_cavage,
)
from interop.wire import Request

HOUR: Final = 3600
SIGNED: Final = "a Signature with keyId, headers and signature"
UNTRIMMED: Final = f"{SIGNED}, names not trimmed"
KEY: Final = "a key under that keyId"
RIGHT: Final = "a signature that is right"
OWN_DIGEST: Final = "a signature that is right over its own digest of the body"
DIGEST: Final = "the SHA-256 of the body in Digest"
DIGEST_AS_TEXT: Final = "the Digest that it computes, compared as text"
EACH_DIGEST: Final = "a Digest, and each SHA-256 in it that of the body"
DIGEST_SIGNED: Final = "digest is signed"
HOST_SIGNED: Final = "host is signed"
OWN_HOST: Final = "its own host in Host"
ALGORITHM: Final = "algorithm rsa-sha256 or hs2019"
HS2019: Final = "(created) and (expires) with hs2019 only"
NO_CREATED: Final = "neither (created) nor (expires)"
TIME_SIGNED: Final = "date or (created) is signed"
AHEAD: Final = "made at most 1 h ahead"
EXPIRED: Final = "not expired: after 5 min, or at expires (12 h at most), and 1 h of grace"
WITHIN_300: Final = "Date within 300 s"
WITHIN_HOUR: Final = "Date within 1 h"
NOT_OLDER: Final = "made within the last hour"
IDS: Final = "ids are https without a port"
ACTOR_KEY: Final = "a key of the activity's actor"
ONE_FIELD: Final = "no signature in Authorization beside Signature"
CREATED_AHEAD: Final = "created at most 10 s ahead"
EXPIRES_PAST: Final = "expires at most 10 s past"
SIZE: Final = "a body of at most 64 KB"
ALL_SIGNED: Final = "(request-target), date and digest are signed"
ONE: Final = "RFC 9421: one signature"
KEYID_CREATED: Final = "RFC 9421: keyid and created"
COVERED: Final = "RFC 9421: @method, @target-uri and content-digest are covered"
CONTENT_DIGEST: Final = "RFC 9421: the sha-256 of the body in Content-Digest"
ALG: Final = "RFC 9421: alg rsa-v1_5-sha256, or none"
MESSAGE_RIGHT: Final = "RFC 9421: a signature that is right"
CREATED_WITHIN: Final = "RFC 9421: created within 1 h"


class Profile(NamedTuple):
    """A verifier and its rules; `check` raises Refused."""

    name: str
    rules: tuple[str, ...]
    check: Callable[[Request, Server], None]
    #: what it asks for when it refuses
    accept_signature: str = ""
    #: has inboxes at a port of their own
    ports: bool = True

    def refusal(self, request: Request, server: Server) -> str | None:
        """The rule that the request breaks; None if it is taken."""
        try:
            self.check(request, server)
        except Refused as refused:
            return refused.rule
        return None


def mastodon(request: Request, server: Server) -> None:
    if request.get("Signature-Input") is not None:
        return mastodon_rfc9421(request, server)
    signed = cavage(request, SIGNED)
    pseudo = {"(created)", "(expires)"} & set(signed.names)
    algorithm = signed.algorithm or "hs2019"
    require(algorithm in ("rsa-sha256", "hs2019"), ALGORITHM)
    require(algorithm == "hs2019" or not pseudo, HS2019)
    require({"date", "(created)"} & set(signed.names), TIME_SIGNED)
    require("digest" in signed.names, DIGEST_SIGNED)
    created = float(signed.created) if "(created)" in pseudo and signed.created else seconds(request, AHEAD)
    _timely(created, signed.expires if "(expires)" in pseudo else None, server.now)
    require(f"SHA-256={sha256(request.body)}" in (request.get("Digest") or "").split(","), DIGEST)
    require(signed.key_id in server.keys, KEY)
    key = server.keys[signed.key_id]
    targets = (request.target, request.path)
    return require(verifies_cavage(request, signed, key, targets, "rsa-sha256"), RIGHT)


def _timely(created: float, expires: float | None, now: float) -> None:
    require(created <= now + HOUR, AHEAD)
    end = min(created + 300 if expires is None else expires, created + 12 * HOUR)
    require(now <= end + HOUR, EXPIRED)


def mastodon_rfc9421(request: Request, server: Server) -> None:
    signatures = message_signatures(request)
    require(len(signatures) == 1, ONE)
    (signed,) = signatures
    told = signed.parameters
    require(told.get("keyid") and told.get("created"), KEYID_CREATED)
    require({"@method", "@target-uri", "content-digest"} <= set(signed.components), COVERED)
    require(told.get("alg", "rsa-v1_5-sha256") == "rsa-v1_5-sha256", ALG)
    _timely(float(told["created"]), float(told["expires"]) if told.get("expires") else None, server.now)
    require(request.get("Content-Digest") == f"sha-256=:{sha256(request.body)}:", CONTENT_DIGEST)
    require(told["keyid"] in server.keys, KEY)
    try:
        base = signed.base(request, server.host)
    except KeyError:
        raise Refused(MESSAGE_RIGHT) from None
    require(verifies(server.keys[told["keyid"]], signed.signature, base, "rsa-sha256"), MESSAGE_RIGHT)


def lemmy(request: Request, server: Server) -> None:
    digests = [item.strip() for item in (request.get("Digest") or "").split(",") if item.strip()]
    sums = [item.partition("=")[2] for item in digests if item.lower().startswith("sha-256=")]
    require(sums and all(found == sha256(request.body) for found in sums), EACH_DIGEST)
    signed = cavage(request, SIGNED)
    made = signed.created if signed.created is not None else seconds(request, NOT_OLDER)
    require(server.now - made <= HOUR, NOT_OLDER)
    activity = document(request)
    for identifier in (activity["id"], activity["actor"]):
        require(re.match(r"https://[^/:]+/", identifier), IDS)
    require(activity["actor"] in server.actors, ACTOR_KEY)
    key = server.actors[activity["actor"]]
    require(verifies_cavage(request, signed, key, (request.target,), "rsa-sha256"), RIGHT)


def gotosocial(request: Request, server: Server) -> None:
    both = request.get("Signature") and "signature=" in (request.get("Authorization") or "")
    require(not both, ONE_FIELD)
    signed = cavage(request, UNTRIMMED, trimmed=False)
    require(signed.created is None or signed.created <= server.now + 10, CREATED_AHEAD)
    require(signed.expires is None or server.now <= signed.expires + 10, EXPIRES_PAST)
    require(signed.key_id in server.keys, KEY)
    key, algorithms = server.keys[signed.key_id], ("rsa-sha256", "rsa-sha512", "ed25519")
    require(verifies_cavage(request, signed, key, (request.target,), *algorithms), RIGHT)


def pleroma(request: Request, server: Server) -> None:
    _pleroma(request, server, (request.path, request.target))


def older_pleroma(request: Request, server: Server) -> None:
    signed = cavage(request, SIGNED)
    require(not {"(created)", "(expires)"} & set(signed.names), NO_CREATED)
    _pleroma(request, server, (request.path,))


def _pleroma(request: Request, server: Server, targets: tuple[str, ...]) -> None:
    signed = cavage(request, SIGNED)
    require(signed.key_id in server.keys, KEY)
    key, digest = server.keys[signed.key_id], f"SHA-256={sha256(request.body)}"
    require(verifies_cavage(request, signed, key, targets, "rsa-sha256", digest=digest), OWN_DIGEST)


def misskey(request: Request, server: Server) -> None:
    require(len(request.body) <= 64 * 1024, SIZE)
    signed = cavage(request, SIGNED)
    require("host" in signed.names, HOST_SIGNED)
    require(request.get("Host") == server.host, OWN_HOST)
    require("digest" in signed.names, DIGEST_SIGNED)
    require(request.get("Digest") == f"SHA-256={sha256(request.body)}", DIGEST)
    require(abs(seconds(request, WITHIN_300) - server.now) <= 300, WITHIN_300)
    require(signed.key_id in server.keys, KEY)
    key = server.keys[signed.key_id]
    require(verifies_cavage(request, signed, key, (request.target,), "rsa-sha256"), RIGHT)


def piefed(request: Request, server: Server) -> None:
    signed = cavage(request, SIGNED)
    require(request.get("Digest") == f"SHA-256={sha256(request.body)}", DIGEST_AS_TEXT)
    require(abs(seconds(request, WITHIN_HOUR) - server.now) <= HOUR, WITHIN_HOUR)
    require(signed.algorithm in ("rsa-sha256", "hs2019"), ALGORITHM)
    require(signed.key_id in server.keys, KEY)
    key = server.keys[signed.key_id]
    require(verifies_cavage(request, signed, key, (request.path,), "rsa-sha256"), RIGHT)


def fedify(request: Request, server: Server) -> None:
    if request.get("Signature-Input") is not None:
        return fedify_rfc9421(request, server)
    require(abs(seconds(request, WITHIN_HOUR) - server.now) <= HOUR, WITHIN_HOUR)
    require(request.get("Digest") == f"SHA-256={sha256(request.body)}", DIGEST)
    signed = cavage(request, SIGNED)
    require(signed.key_id in server.keys, KEY)
    require({"(request-target)", "date", "digest"} <= set(signed.names), ALL_SIGNED)
    key = server.keys[signed.key_id]
    return require(verifies_cavage(request, signed, key, (request.path,), "rsa-sha256"), RIGHT)


def fedify_rfc9421(request: Request, server: Server) -> None:
    for signed in message_signatures(request):
        told = signed.parameters
        require(told.get("keyid") and told.get("created"), KEYID_CREATED)
        require(abs(float(told["created"]) - server.now) <= HOUR, CREATED_WITHIN)
        if "content-digest" in signed.components:
            require(request.get("Content-Digest") == f"sha-256=:{sha256(request.body)}:", CONTENT_DIGEST)
        require(told["keyid"] in server.keys, KEY)
        base = signed.base(request, server.host)
        if verifies(server.keys[told["keyid"]], signed.signature, base, "rsa-sha256", "ed25519"):
            return
    raise Refused(MESSAGE_RIGHT)


_PLEROMA: Final = (SIGNED, KEY, OWN_DIGEST)
PROFILES: Final = (
    Profile(
        "Mastodon",
        (
            SIGNED, ALGORITHM, HS2019, TIME_SIGNED, DIGEST_SIGNED, AHEAD, EXPIRED, DIGEST, KEY, RIGHT,
            ONE, KEYID_CREATED, COVERED, ALG, CONTENT_DIGEST, MESSAGE_RIGHT,
        ),
        mastodon,
    ),
    Profile("Lemmy", (EACH_DIGEST, SIGNED, NOT_OLDER, IDS, ACTOR_KEY, RIGHT), lemmy, ports=False),
    Profile("GoToSocial", (ONE_FIELD, UNTRIMMED, CREATED_AHEAD, EXPIRES_PAST, KEY, RIGHT), gotosocial),
    Profile(
        "Misskey",
        (SIZE, SIGNED, HOST_SIGNED, OWN_HOST, DIGEST_SIGNED, DIGEST, WITHIN_300, KEY, RIGHT),
        misskey,
    ),
    Profile("Pleroma", _PLEROMA, pleroma),
    Profile("Pleroma, older", (*_PLEROMA, NO_CREATED), older_pleroma),
    Profile("PieFed", (SIGNED, DIGEST_AS_TEXT, WITHIN_HOUR, ALGORITHM, KEY, RIGHT), piefed),
    Profile(
        "Fedify",
        (
            WITHIN_HOUR, DIGEST, SIGNED, KEY, ALL_SIGNED, RIGHT,
            KEYID_CREATED, CREATED_WITHIN, CONTENT_DIGEST, MESSAGE_RIGHT,
        ),
        fedify,
        accept_signature='sig1=("@method" "@target-uri" "@authority" "content-digest");created;keyid',
    ),
)  # fmt: skip
