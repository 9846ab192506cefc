"""What we send: the deliverer as the worker uses it, with keys of one actor."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from servers.certificates import authority

from fedsvc.config import Settings
from fedsvc.domain.inbox import parse_inbox
from fedsvc.domain.integrity import base58, with_proof
from fedsvc.domain.keys import PrivateKey, load_private_key
from fedsvc.domain.knock import Dialect
from fedsvc.domain.message import Message
from fedsvc.worker.deliverer import AttemptResult, Deliverer
from fedsvc.worker.signer import Signer
from interop.wire import Request, recording

ACTOR = "https://me.example/u/ada"
ACTIVITY: dict[str, Any] = {
    "@context": "https://www.w3.org/ns/activitystreams",
    "id": f"{ACTOR}/activities/1",
    "type": "Create",
    "actor": ACTOR,
    "to": ["https://www.w3.org/ns/activitystreams#Public"],
    "object": {
        "id": f"{ACTOR}/notes/1",
        "type": "Note",
        "attributedTo": ACTOR,
        "content": "Hello, naïve \u2028 world 🌍",
    },
}
BODY = orjson.dumps(ACTIVITY)
PROOF_METHOD = f"{ACTOR}#proof-key"


def key_of(algorithm: str, owner: str = "ada") -> PrivateKey:
    """rsa or ed25519; another `owner` has another key."""
    return _key(algorithm, owner)


@cache
def _key(algorithm: str, owner: str) -> PrivateKey:
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
    if algorithm == "rsa":
        key = rsa.generate_private_key(65537, 2048)
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    return load_private_key(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def key_id(algorithm: str) -> str:
    return f"{ACTOR}#{algorithm}-key"


def public_key(algorithm: str) -> rsa.RSAPublicKey | ed25519.Ed25519PublicKey:
    key = serialization.load_pem_public_key(key_of(algorithm).public_pem.encode())
    assert isinstance(key, rsa.RSAPublicKey | ed25519.Ed25519PublicKey)
    return key


def proved(owner: str = "ada", body: bytes = BODY) -> bytes:
    """The activity with an integrity proof."""
    return with_proof(body, key_of("ed25519", owner), PROOF_METHOD, int(time.time()))


def actor_document() -> dict[str, Any]:
    """What whoever wants to verify gets under the actor's id."""
    raw = public_key("ed25519").public_bytes(Encoding.Raw, serialization.PublicFormat.Raw)
    multibase = "z" + base58(b"\xed\x01" + raw)
    return {
        "@context": [
            "https://www.w3.org/ns/activitystreams",
            "https://w3id.org/security/v1",
            "https://w3id.org/security/multikey/v1",
            "https://www.w3.org/ns/did/v1",
        ],
        "id": ACTOR,
        "type": "Person",
        "preferredUsername": "ada",
        "inbox": f"{ACTOR}/inbox",
        "publicKey": [
            {
                "id": key_id(name),
                "type": "CryptographicKey",
                "owner": ACTOR,
                "publicKeyPem": key_of(name).public_pem,
            }
            for name in ("rsa", "ed25519")
        ],
        "assertionMethod": [
            {"id": PROOF_METHOD, "type": "Multikey", "controller": ACTOR, "publicKeyMultibase": multibase}
        ],
    }


async def deliver(
    inbox: str,
    key: PrivateKey | None = None,
    dialect: Dialect = Dialect.UNKNOWN,
    *,
    body: bytes = BODY,
    signed_as: str | None = None,
) -> AttemptResult:
    """One attempt, to an inbox as a caller may spell it. The key is the actor's RSA key unless told."""
    key = key or key_of("rsa")
    settings = Settings.from_environment(
        {}, allowed_cidrs="127.0.0.0/8", ca_file=str(authority().file), user_agent="fedsvc (interop)"
    )
    message = Message(
        body, ACTIVITY["id"], "Create", ACTOR, signed_as or key_id(key.algorithm), key.fingerprint,
        "me.example", digest=Message.digest_of(body),
    )  # fmt: skip
    signer = Signer(1, 2)
    deliverer = Deliverer(settings, signer)
    await deliverer.start()
    try:
        return await deliverer.deliver(message, parse_inbox(inbox).url, key, dialect=dialect)
    finally:
        await deliverer.close()
        signer.close()


async def captured(
    inbox: str, host: str, key: PrivateKey | None = None, dialect: Dialect = Dialect.UNKNOWN, **more: Any
) -> Request:
    """What an inbox at `host` gets, which takes the first that comes."""
    async with recording(hosts=(host,)) as recorder:
        result = await deliver(inbox, key, dialect, **more)
    assert result.verdict.status == 202, result
    (request,) = recorder.requests
    return request
