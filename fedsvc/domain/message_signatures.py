"""HTTP Message Signatures, RFC 9421: what servers take that do not take draft-cavage, and what some ask for
by name (`Accept-Signature`, section 5.1).

By default a signature covers `@method`, `@target-uri` and `content-digest` and says when it was made, which
is what Mastodon wants; the key's algorithm is told only to those who ask for it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import http_sf

from fedsvc.domain.signatures import Target, quoted_key_id

#: names of algorithms by type of key (section 6.2.2)
ALGORITHMS: Final = {"rsa": "rsa-v1_5-sha256", "ed25519": "ed25519"}
#: seconds for which a signature is good, for those who ask for an end
LIFETIME_S: Final = 300
#: what we can cover: derived components of a request, and headers that every request has
_COMPONENTS: Final = frozenset(
    {
        *("@method", "@target-uri", "@authority", "@scheme", "@request-target", "@path", "@query"),
        *("content-digest", "content-type", "content-length", "date", "digest", "host"),
    }
)
_MAX_HEADER: Final = 4096
_MAX_TEXT: Final = 512


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a signature covers and what it says of itself."""

    components: tuple[str, ...] = ("@method", "@target-uri", "content-digest")
    label: str = "sig1"
    created: bool = True
    expires: bool = False
    #: name of the algorithm, if it is to be told
    algorithm: str = ""
    nonce: str = ""
    tag: str = ""


DEFAULT: Final = Coverage()
#: for those who want more than the default, and did not say it in this answer
FULL: Final = Coverage(("@method", "@target-uri", "@authority", "host", "date", "content-digest"))


class SignedRequest(NamedTuple):
    """A request that lacks only its signature."""

    base: bytes  # what is to be signed
    headers: dict[str, str]
    label: str

    def with_signature(self, signature: bytes) -> dict[str, str]:
        return {**self.headers, "Signature": f"{self.label}=:{base64.b64encode(signature).decode()}:"}


def request(
    coverage: Coverage, scheme: str, target: Target, *,
    digest: str, length: int, content_type: str, key_id: str, epoch_seconds: int, date: str,
) -> SignedRequest:  # fmt: skip
    """A POST with a body of `length` bytes whose SHA-256 is `digest` (base64); `date` is that of
    `epoch_seconds`."""
    path, _, query = target.path.partition("?")
    headers = {
        "Host": target.host,
        "Date": date,
        "Content-Type": content_type,
        "Content-Digest": f"sha-256=:{digest}:",
    }
    if "digest" in coverage.components:
        headers["Digest"] = f"SHA-256={digest}"
    values = {
        "@method": "POST",
        "@target-uri": f"{scheme}://{target.host}{target.path}",
        "@authority": target.host,
        "@scheme": scheme,
        "@request-target": target.path,
        "@path": path,
        "@query": f"?{query}",
        "content-length": str(length),
        **{name.lower(): value for name, value in headers.items()},
    }
    told = parameters(coverage, key_id=key_id, epoch_seconds=epoch_seconds)
    headers["Signature-Input"] = f"{coverage.label}={told}"
    return SignedRequest(signature_base(coverage.components, values, told), headers, coverage.label)


def signature_base(components: tuple[str, ...], values: Mapping[str, str], told: str) -> bytes:
    """Section 2.5. Raises KeyError for a component without a value."""
    lines = [f'"{name}": {values[name]}' for name in components]
    return "\n".join([*lines, f'"@signature-params": {told}']).encode()


def parameters(coverage: Coverage, *, key_id: str, epoch_seconds: int) -> str:
    """Value of `@signature-params`, section 2.3."""
    parts = ["(" + " ".join(f'"{name}"' for name in coverage.components) + ")"]
    if coverage.created:
        parts.append(f"created={epoch_seconds}")
    if coverage.expires:
        parts.append(f"expires={epoch_seconds + LIFETIME_S}")
    parts.append(f'keyid="{quoted_key_id(key_id)}"')
    for name, text in (("alg", coverage.algorithm), ("nonce", coverage.nonce), ("tag", coverage.tag)):
        if text:
            parts.append(f"{name}={http_sf.ser(text)}")
    return ";".join(parts)


def wanted(accept_signature: str, key_algorithm: str) -> Coverage | None:
    """The first signature of an `Accept-Signature` that a key of this type can make; None if there is none.
    Whatever a remote sends, it raises nothing. Time, target and the body's digest are covered also where they
    are not asked for: we sign nothing that could be sent again later, elsewhere or with another body."""
    if not accept_signature or len(accept_signature) > _MAX_HEADER:
        return None
    try:
        members: Any = http_sf.parse(accept_signature.encode("ascii"), tltype="dictionary")
    except (ValueError, RecursionError):
        return None
    return next(_coverages(members, ALGORITHMS[key_algorithm]), None)


def _coverages(members: dict[str, Any], algorithm: str) -> Iterator[Coverage]:
    for label, member in members.items():
        items, told = member
        if not isinstance(items, list):
            continue
        names = [name for name, said in items if isinstance(name, str) and not said]
        nonce, tag, alg = (told.get(name, "") for name in ("nonce", "tag", "alg"))
        if (
            len(names) != len(items)
            or len(set(names)) != len(names)
            or not _COMPONENTS.issuperset(names)
            or not all(isinstance(text, str) and len(text) <= _MAX_TEXT for text in (nonce, tag, alg))
            or alg not in ("", algorithm)
        ):
            continue
        if "@target-uri" not in names and not ("@authority" in names and "@request-target" in names):
            names.append("@target-uri")
        if "content-digest" not in names and "digest" not in names:
            names.append("content-digest")
        yield Coverage(tuple(names), label, True, bool(told.get("expires")), alg, nonce, tag)
