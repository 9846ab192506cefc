"""What the profiles read of a signed request, by the texts of draft-cavage-12 and RFC 9421 alone: nothing
here comes from the code that signs."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from interop.wire import Request

PublicKey = rsa.RSAPublicKey | ed25519.Ed25519PublicKey
#: one or several of a Signature-Input
_INPUT = re.compile(r'([a-z*][a-z0-9_.*-]*)=(\(([^)]*)\)((?:;[a-z]+(?:=(?:"[^"]*"|\d+))?)*))')


class Refused(Exception):
    """By which rule."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


class Server(NamedTuple):
    """What a verifier knows beside the request."""

    host: str  # its own, as in Host
    now: float  # seconds since the epoch
    keys: Mapping[str, PublicKey]  # by key id
    actors: Mapping[str, PublicKey]  # by actor


def require(holds: object, rule: str) -> None:
    """Raises Refused."""
    if not holds:
        raise Refused(rule)


class Cavage(NamedTuple):
    """Parameters of a `Signature` field."""

    key_id: str
    algorithm: str | None
    names: tuple[str, ...]
    signature: bytes
    created: int | None
    expires: int | None


def cavage(request: Request, rule: str, *, trimmed: bool = True) -> Cavage:
    """Raises Refused if a parameter that must be there is not. Untrimmed, a space is part of a name."""
    parameters = {}
    for item in re.findall(r'[^,"]*="[^"]*"|[^,]+', request.get("Signature") or ""):
        name, _, value = item.partition("=")
        parameters[name.strip() if trimmed else name] = value.strip('"')
    try:
        return Cavage(
            parameters["keyId"],
            parameters.get("algorithm"),
            tuple(parameters["headers"].split(" ")),
            base64.b64decode(parameters["signature"], validate=True),
            int(parameters["created"]) if "created" in parameters else None,
            int(parameters["expires"]) if "expires" in parameters else None,
        )
    except (KeyError, binascii.Error):
        raise Refused(rule) from None


def base_of(request: Request, signed: Cavage, target: str, digest: str | None = None) -> bytes:
    """The signing string; `digest`: instead of what Digest says. Raises KeyError for what is not there."""
    lines = []
    for name in signed.names:
        match name:
            case "(request-target)":
                value: object = f"{request.method.lower()} {target}"
            case "(created)":
                value = signed.created
            case "(expires)":
                value = signed.expires
            case "digest" if digest is not None:
                value = digest
            case _:
                value = request.get(name)
        if value is None:
            raise KeyError(name)
        lines.append(f"{name}: {value}")
    return "\n".join(lines).encode()


def verifies(key: PublicKey, signature: bytes, base: bytes, *algorithms: str) -> bool:
    """By one of rsa-sha256, rsa-sha512, ed25519."""
    for algorithm in algorithms:
        try:
            if algorithm == "ed25519" and isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, base)
                return True
            if algorithm.startswith("rsa") and isinstance(key, rsa.RSAPublicKey):
                digest = hashes.SHA256() if algorithm == "rsa-sha256" else hashes.SHA512()
                key.verify(signature, base, padding.PKCS1v15(), digest)
                return True
        except InvalidSignature:
            pass
    return False


def verifies_cavage(
    request: Request, signed: Cavage, key: PublicKey, targets: tuple[str, ...], *algorithms: str,
    digest: str | None = None,
) -> bool:  # fmt: skip
    """With one of `targets`."""
    try:
        bases = [base_of(request, signed, target, digest) for target in targets]
    except KeyError:
        return False
    return any(verifies(key, signed.signature, base, *algorithms) for base in bases)


def sha256(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


def seconds(request: Request, rule: str) -> float:
    """Of Date. Raises Refused."""
    try:
        return parsedate_to_datetime(request.get("Date") or "").timestamp()
    except ValueError:
        raise Refused(rule) from None


def document(request: Request) -> dict[str, str]:
    found = json.loads(request.body)
    assert isinstance(found, dict)
    return found


class MessageSignature(NamedTuple):
    """One signature of RFC 9421."""

    components: tuple[str, ...]
    parameters: dict[str, str]
    told: str  # value of @signature-params
    signature: bytes

    def base(self, request: Request, host: str) -> bytes:
        """Section 2.5. Raises KeyError for a component that is not there."""
        derived = {
            "@method": request.method,
            "@target-uri": f"https://{host}{request.target}",
            "@authority": host,
            "@request-target": request.target,
            "@path": request.path,
        }
        lines = []
        for name in self.components:
            value = derived.get(name) or request.get(name)
            if value is None:
                raise KeyError(name)
            lines.append(f'"{name}": {value}')
        return "\n".join([*lines, f'"@signature-params": {self.told}']).encode()


def message_signatures(request: Request) -> list[MessageSignature]:
    found = []
    signatures = dict(
        re.findall(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):", request.get("Signature") or "")
    )
    for label, told, names, rest in _INPUT.findall(request.get("Signature-Input") or ""):
        parameters = dict(re.findall(r';([a-z]+)(?:="?([^";]*)"?)?', rest))
        signature = base64.b64decode(signatures.get(label, ""))
        components = tuple(name.strip('"') for name in names.split())
        found.append(MessageSignature(components, parameters, told, signature))
    return found
