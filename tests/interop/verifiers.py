"""Verifiers that are not ours, each an inbox at a host of its own: 202 if it takes a request, else 401.

apsig's quirks, pinned in `test_signature_verifiers.py`: it knows neither Ed25519 keys in draft-cavage nor
`@target-uri` in RFC 9421. Its proofs are verified at a host of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import orjson
from apsig.draft import Verifier as ApsigVerifier
from apsig.exceptions import SignatureError
from apsig.proof import ProofVerifier
from cryptography.hazmat.primitives.asymmetric import ed25519
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageVerifier,
    MappingKeyResolver,
    algorithms,
)

from fedsvc.domain.keys import PrivateKey
from fedsvc.domain.knock import Dialect
from interop.node import DOMAINS, HOSTS, node_inboxes
from interop.sender import BODY, captured, key_id, key_of, proved, public_key
from interop.wire import Answer, Request, recording


class Scheme(Enum):
    """What is verified: a title, the type of key, and how the host is remembered that it is sent to."""

    CAVAGE_RSA = ("draft-cavage, `rsa-sha256`", "rsa", Dialect.CAVAGE)
    CAVAGE_ED25519 = ("draft-cavage, `hs2019` with Ed25519", "ed25519", Dialect.CAVAGE)
    RFC9421_RSA = ("RFC 9421, `rsa-v1_5-sha256`", "rsa", Dialect.RFC9421)
    RFC9421_ED25519 = ("RFC 9421, `ed25519`", "ed25519", Dialect.RFC9421)
    RFC9421_FULL = ("RFC 9421, with all that is asked for", "rsa", Dialect.RFC9421_FULL)
    PROOF = ("FEP-8b32, `eddsa-jcs-2022`", "rsa", Dialect.CAVAGE)

    def __init__(self, title: str, algorithm: str, dialect: Dialect) -> None:
        self.title = title
        self.algorithm = algorithm
        self.dialect = dialect


CAVAGE: Final = frozenset({Scheme.CAVAGE_RSA, Scheme.CAVAGE_ED25519})
PROOFS: Final = frozenset({Scheme.PROOF})
RFC9421: Final = frozenset({Scheme.RFC9421_RSA, Scheme.RFC9421_ED25519, Scheme.RFC9421_FULL})


class Verifier(NamedTuple):
    """An implementation, the schemes it knows, and the host of its inbox (and of one for proofs alone)."""

    name: str
    package: str
    language: str
    knows: frozenset[Scheme]
    host: str
    proof_host: str = ""

    def host_for(self, scheme: Scheme) -> str:
        return (self.proof_host if scheme is Scheme.PROOF else "") or self.host


VERIFIERS: Final[tuple[Verifier, ...]] = (
    Verifier(
        "Fedify", "@fedify/fedify", "npm",
        frozenset({Scheme.CAVAGE_RSA, *RFC9421, Scheme.PROOF}), "fedify.example",
    ),
    Verifier(
        "Misskey's library", "@misskey-dev/node-http-message-signatures", "npm", CAVAGE, "misskey.example",
    ),
    Verifier(
        "PeerTube's library", "@peertube/http-signature", "npm", CAVAGE, "peertube.example",
    ),
    Verifier(
        "http-message-signatures for Node.js", "http-message-signatures", "npm",
        CAVAGE | RFC9421, "http-message-signatures.example",
    ),
    Verifier(
        "http-message-signatures for Python", "http-message-signatures", "PyPI", RFC9421, "pyauth.example",
    ),
    Verifier(
        "Digital Bazaar's library", "@digitalbazaar/eddsa-jcs-2022-cryptosuite", "npm",
        PROOFS, "digital-bazaar.example",
    ),
    Verifier(
        "apsig", "apsig", "PyPI", frozenset({Scheme.CAVAGE_RSA, Scheme.PROOF}),
        "apsig.example", "apsig-proofs.example",
    ),
)  # fmt: skip


def by_apsig(request: Request) -> Answer:
    key, url = public_key("rsa"), f"https://{request.get('Host')}{request.target}"
    try:
        verifier: Any = ApsigVerifier(key, request.method, url, dict(request.fields), request.body)
        verifier.verify(raise_on_fail=True)
    except (SignatureError, KeyError) as error:  # KeyError: of parameters that are not there
        return Answer(401, body=str(error).encode())
    return Answer(202)


def by_apsig_proof(request: Request) -> Answer:
    key = public_key("ed25519")
    assert isinstance(key, ed25519.Ed25519PublicKey)
    found = ProofVerifier(key).verify_proof(orjson.loads(request.body))
    return Answer(202) if found else Answer(401, body=b"proof")


def by_http_message_signatures(request: Request) -> Answer:
    message = SimpleNamespace(
        method=request.method,
        url=f"https://{request.get('Host')}{request.target}",
        headers=dict(request.fields),
    )
    ed = f'keyid="{key_id("ed25519")}"' in (request.get("Signature-Input") or "")
    verifier = HTTPMessageVerifier(
        signature_algorithm=algorithms.ED25519 if ed else algorithms.RSA_V1_5_SHA256,
        key_resolver=MappingKeyResolver(
            public_keys={key_id(name): key_of(name).public_pem.encode() for name in ("rsa", "ed25519")},
            private_keys={},
        ),
    )
    covered = ("@method", "@target-uri", "content-digest")
    try:
        verifier.verify(message, require_components=covered, body=request.body)
    except HTTPMessageSignaturesException as error:
        return Answer(401, body=str(error).encode())
    return Answer(202)


class Inboxes(NamedTuple):
    """All verifiers, serving."""

    ports: Mapping[str, int]  # by host
    versions: Mapping[tuple[str, str], str]  # by language and package


@asynccontextmanager
async def verifier_inboxes() -> AsyncIterator[Inboxes]:
    """Raises NoRegistry."""
    async with AsyncExitStack() as stack:
        node = stack.enter_context(node_inboxes())
        ports = dict.fromkeys(HOSTS, node.port)
        for name, judge in (
            ("apsig", by_apsig),
            ("apsig-proofs", by_apsig_proof),
            ("pyauth", by_http_message_signatures),
        ):
            hosts = tuple(f"{name}.{domain}" for domain in DOMAINS)
            recorder = await stack.enter_async_context(recording(judge, hosts))
            ports |= dict.fromkeys(hosts, recorder.port)
        versions = {("npm", name): found for name, found in node.versions.items()}
        versions |= {("PyPI", v.package): version(v.package) for v in VERIFIERS if v.language == "PyPI"}
        yield Inboxes(ports, versions)


def body_for(scheme: Scheme, owner: str = "ada") -> bytes:
    return proved(owner) if scheme is Scheme.PROOF else BODY


def key_for(scheme: Scheme, owner: str = "ada") -> PrivateKey:
    # who verifies a proof must not look at the request's signature: its key is nobody's
    return key_of(scheme.algorithm, "nobody" if scheme is Scheme.PROOF else owner)


def signed_as(scheme: Scheme) -> str:
    return "https://nobody.example/u/nobody#key" if scheme is Scheme.PROOF else key_id(scheme.algorithm)


async def captured_for(verifier: Verifier, scheme: Scheme, owner: str = "ada") -> Request:
    """What the verifier's inbox would get, of a sender with `owner`'s key under the actor's key id."""
    host = verifier.host_for(scheme)
    return await captured(
        f"https://{host}/inbox", host, key_for(scheme, owner), scheme.dialect,
        body=body_for(scheme, owner), signed_as=signed_as(scheme),
    )  # fmt: skip
