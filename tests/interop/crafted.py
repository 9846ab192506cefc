"""Requests made by hand, each as right or as wrong as a test wants it, rightly signed all the same."""

from __future__ import annotations

import base64
from collections.abc import Callable
from email.utils import formatdate
from typing import Final

import orjson

from interop import profiles as rules
from interop.sender import ACTIVITY, ACTOR, BODY, key_id, key_of, public_key
from interop.signed import Cavage, MessageSignature, Server, base_of, sha256
from interop.wire import Request

NOW: Final = 1_795_000_000
HOST: Final = "remote.example"
SERVER: Final = Server(HOST, NOW, {key_id("rsa"): public_key("rsa")}, {ACTOR: public_key("rsa")})
NAMES: Final = ("(request-target)", "host", "date", "digest")
COMPONENTS: Final = ("@method", "@target-uri", "content-digest")


def _sign(owner: str, base: bytes) -> bytes:
    return key_of("rsa", owner).sign(base)


def cavage_request(
    *,
    owner: str = "ada",
    signed_as: str = key_id("rsa"),
    algorithm: str | None = "rsa-sha256",
    names: tuple[str, ...] = NAMES,
    made: int = NOW,
    created: int | None = None,
    expires: int | None = None,
    digest: str | None = None,
    host: str = HOST,
    body: bytes = BODY,
    separator: str = ",",
    without: str = "",
    more: tuple[tuple[str, str], ...] = (),
) -> Request:
    """By draft-cavage. `digest`: instead of the body's; `without`: this parameter."""
    fields = (
        ("Host", host),
        ("Date", formatdate(made, usegmt=True)),
        ("Digest", f"SHA-256={sha256(body)}" if digest is None else digest),
        *more,
    )
    request = Request("POST", "/inbox", tuple(field for field in fields if field[1]), body)
    base = base_of(request, Cavage("", None, names, b"", created, expires), request.target)
    told = {
        "keyId": f'"{signed_as}"',
        "algorithm": algorithm and f'"{algorithm}"',
        "created": created,
        "expires": expires,
        "headers": f'"{" ".join(names)}"',
        "signature": f'"{base64.b64encode(_sign(owner, base)).decode()}"',
    }
    parts = [f"{name}={value}" for name, value in told.items() if value is not None and name != without]
    return request.having(signature=separator.join(parts))


def rfc9421_request(
    *,
    owner: str = "ada",
    components: tuple[str, ...] = COMPONENTS,
    parameters: str = f'created={NOW};keyid="{key_id("rsa")}"',
    labels: tuple[str, ...] = ("sig1",),
) -> Request:
    """By RFC 9421, once for each label."""
    fields = (("Host", HOST), ("Content-Digest", f"sha-256=:{sha256(BODY)}:"))
    request = Request("POST", "/inbox", fields, BODY)
    covered = " ".join(f'"{name}"' for name in components)
    told = f"({covered});{parameters}"
    signature = _sign(owner, MessageSignature(components, {}, told, b"").base(request, HOST))
    encoded = base64.b64encode(signature).decode()
    return request.having(
        signature_input=", ".join(f"{label}={told}" for label in labels),
        signature=", ".join(f"{label}=:{encoded}:" for label in labels),
    )


def activity_request(**changes: str) -> Request:
    """With another activity."""
    return cavage_request(body=orjson.dumps(ACTIVITY | changes))


def changed_body(request: Request) -> Request:
    """Once it is signed."""
    return request._replace(body=request.body.replace(b"Hello", b"Hallo"))


def aged(created: int) -> Request:
    """By its own word, as hs2019 has it."""
    return cavage_request(algorithm="hs2019", names=("(created)", *NAMES), created=created)


def expiring(expires: int, created: int = NOW) -> Request:
    names = ("(created)", "(expires)", *NAMES)
    return cavage_request(algorithm="hs2019", names=names, created=created, expires=expires)


def rfc9421_aged(created: int) -> Request:
    return rfc9421_request(parameters=f'created={created};keyid="{key_id("rsa")}"')


def _without(name: str) -> tuple[str, ...]:
    return tuple(other for other in NAMES if other != name)


#: rule -> requests that break it, and no other
BREAKING: Final[dict[str, tuple[Callable[[], Request], ...]]] = {
    rules.SIGNED: (
        lambda: cavage_request().having(signature=None),
        lambda: cavage_request(without="headers"),
        lambda: cavage_request(without="keyId"),
    ),
    rules.UNTRIMMED: (lambda: cavage_request(separator=", "), lambda: cavage_request(without="signature")),
    rules.KEY: (lambda: cavage_request(signed_as=f"{ACTOR}#another-key"),),
    rules.ACTOR_KEY: (lambda: activity_request(actor="https://me.example/u/eve"),),
    rules.RIGHT: (
        lambda: cavage_request(owner="eve"),
        lambda: cavage_request()._replace(target="/u/bob/inbox"),
        lambda: cavage_request().having(date=formatdate(NOW - 1, usegmt=True)),
    ),
    rules.OWN_DIGEST: (
        lambda: changed_body(cavage_request()),
        lambda: cavage_request(owner="eve"),
        lambda: cavage_request(digest=f"SHA-256={sha256(b'another')}"),
    ),
    rules.DIGEST: (
        lambda: changed_body(cavage_request()),
        lambda: cavage_request(digest=f"SHA-256={sha256(b'another')}"),
    ),
    rules.DIGEST_AS_TEXT: (
        lambda: changed_body(cavage_request()),
        lambda: cavage_request(digest=f"sha-256={sha256(BODY)}"),
    ),
    rules.EACH_DIGEST: (
        lambda: cavage_request(digest="", names=_without("digest")),
        lambda: cavage_request(digest=f"SHA-256={sha256(BODY)},SHA-256={sha256(b'another')}"),
        lambda: changed_body(cavage_request()),
    ),
    rules.DIGEST_SIGNED: (lambda: cavage_request(names=_without("digest")),),
    rules.HOST_SIGNED: (lambda: cavage_request(names=_without("host")),),
    rules.OWN_HOST: (
        lambda: cavage_request(host="another.example"),
        lambda: cavage_request(host=f"{HOST}:443"),
    ),
    rules.ALGORITHM: (lambda: cavage_request(algorithm="rsa-sha512"),),
    rules.HS2019: (lambda: cavage_request(names=("(created)", *NAMES), created=NOW),),
    rules.NO_CREATED: (lambda: aged(NOW), lambda: expiring(NOW + 300)),
    rules.TIME_SIGNED: (lambda: cavage_request(names=_without("date")),),
    rules.AHEAD: (lambda: cavage_request(made=NOW + 3601), lambda: aged(NOW + 3601)),
    rules.EXPIRED: (
        lambda: cavage_request(made=NOW - 3901),
        lambda: aged(NOW - 3901),
        lambda: expiring(NOW - 3601, NOW - 3700),
        lambda: expiring(NOW + 86_400, NOW - 13 * 3600 - 1),
        lambda: rfc9421_aged(NOW - 3901),
    ),
    rules.WITHIN_300: (lambda: cavage_request(made=NOW - 301), lambda: cavage_request(made=NOW + 301)),
    rules.WITHIN_HOUR: (lambda: cavage_request(made=NOW - 3601), lambda: cavage_request(made=NOW + 3601)),
    rules.NOT_OLDER: (lambda: cavage_request(made=NOW - 3601), lambda: aged(NOW - 3601)),
    rules.IDS: (
        lambda: activity_request(id="https://me.example:8443/1"),
        lambda: activity_request(actor="http://me.example/u/ada"),
    ),
    rules.ONE_FIELD: (
        lambda: cavage_request(more=(("Authorization", 'Signature keyId="a",signature="b"'),)),
    ),
    rules.CREATED_AHEAD: (lambda: aged(NOW + 11),),
    rules.EXPIRES_PAST: (lambda: expiring(NOW - 11),),
    rules.SIZE: (lambda: activity_request(content="x" * 65_536),),
    rules.ALL_SIGNED: (
        lambda: cavage_request(names=_without("(request-target)")),
        lambda: cavage_request(names=_without("date")),
        lambda: cavage_request(names=_without("digest")),
    ),
    rules.ONE: (
        lambda: rfc9421_request(labels=("sig1", "sig2")),
        lambda: rfc9421_request().having(signature_input="sig1=nothing"),
    ),
    rules.KEYID_CREATED: (
        lambda: rfc9421_request(parameters=f"created={NOW}"),
        lambda: rfc9421_request(parameters=f'keyid="{key_id("rsa")}"'),
    ),
    rules.COVERED: (
        lambda: rfc9421_request(components=COMPONENTS[1:]),
        lambda: rfc9421_request(components=("@method", "@path", "content-digest")),
        lambda: rfc9421_request(components=COMPONENTS[:2]),
    ),
    rules.ALG: (
        lambda: rfc9421_request(parameters=f'created={NOW};keyid="{key_id("rsa")}";alg="rsa-pss-sha512"'),
    ),
    rules.CONTENT_DIGEST: (lambda: changed_body(rfc9421_request()),),
    rules.MESSAGE_RIGHT: (
        lambda: rfc9421_request(owner="eve"),
        lambda: rfc9421_request()._replace(target="/u/bob/inbox"),
    ),
    rules.CREATED_WITHIN: (lambda: rfc9421_aged(NOW - 3601), lambda: rfc9421_aged(NOW + 3601)),
}
