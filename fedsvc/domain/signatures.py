"""HTTP signatures as fediverse servers take them first: draft-cavage-http-signatures-12.

A request covers `(request-target) host date digest`. The path is signed with its query; no space
follows the commas of `Signature`, since some verifiers do not trim parameter names. `(created)` and
`(expires)` are left out, since some do not know them. `algorithm` is rsa-sha256 for RSA keys and
hs2019 for Ed25519 keys, whose algorithm the verifier takes from the key.

What all requests of a message share is prepared once (`MessageForm`), what all requests to an inbox
share too (`Target`): the rest of a request is one signature and a few joins.
"""

from __future__ import annotations

import base64
from email.utils import formatdate
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote

SIGNED_NAMES: Final = "(request-target) host date digest"

_DEFAULT_PORTS: Final = {"https": ":443", "http": ":80"}
#: printable ASCII without space, quote and backslash: what may stand in a quoted keyId as it is
_KEY_ID_SAFE: Final = "!#$%&'()*+,-./:;<=>?@[]^_`{|}~"


class Target(NamedTuple):
    """Where a request goes, as it is signed."""

    host: str  # value of Host: with the port unless it is the scheme's own
    path: str  # with the query, as on the request line

    @classmethod
    def of(cls, url: str) -> Target:
        """Raises ValueError unless `url` is an absolute URL with a host."""
        scheme, separator, rest = url.partition("://")
        if not separator:
            raise ValueError("not an absolute URL")
        if not rest.isascii() or not rest.isprintable() or " " in rest:
            raise ValueError("URL with characters that a request line cannot carry")
        rest, _, _ = rest.partition("#")
        end = min((i for i in (rest.find("/"), rest.find("?")) if i >= 0), default=len(rest))
        host, path = rest[:end].lower(), rest[end:]
        if not host:
            raise ValueError("URL without a host")
        if not path.startswith("/"):
            path = "/" + path
        return cls(host.removesuffix(_DEFAULT_PORTS.get(scheme.lower(), "")), path)


class MessageForm(NamedTuple):
    """What all signed requests of a message share."""

    digest: str  # value of Digest
    content_type: str
    base_end: str  # last line of the signing base
    signature_start: str  # Signature up to its last parameter's value

    @classmethod
    def of(cls, digest: str, key_id: str, content_type: str, key_algorithm: str = "rsa") -> MessageForm:
        """`digest` is the base64 of the SHA-256 of the body; `key_algorithm` is rsa or ed25519.

        Raises ValueError for another algorithm, or a key id that no header can carry.
        """
        match key_algorithm:
            case "rsa":
                algorithm = "rsa-sha256"
            case "ed25519":
                algorithm = "hs2019"
            case _:
                raise ValueError(f"no signature algorithm for keys of type {key_algorithm}")
        value = f"SHA-256={digest}"
        return cls(
            digest=value,
            content_type=content_type,
            base_end=f"digest: {value}",
            signature_start=f'keyId="{quoted_key_id(key_id)}",algorithm="{algorithm}",'
            f'headers="{SIGNED_NAMES}",signature="',
        )

    def base(self, target: Target, date: str) -> bytes:
        """The bytes to sign for a POST to `target` at `date` (see `imf_fixdate`)."""
        base = f"(request-target): post {target.path}\nhost: {target.host}\ndate: {date}\n{self.base_end}"
        return base.encode()

    def headers(self, target: Target, date: str, signature: bytes) -> dict[str, str]:
        """All headers of the POST that depend on the message or its signature."""
        encoded = base64.b64encode(signature).decode()
        return {
            "Host": target.host,
            "Date": date,
            "Digest": self.digest,
            "Content-Type": self.content_type,
            "Signature": f'{self.signature_start}{encoded}"',
        }


@lru_cache(maxsize=8)
def imf_fixdate(epoch_seconds: int) -> str:
    """Date as RFC 9110 section 5.6.7 wants it, in GMT. All requests of a second share it."""
    return formatdate(epoch_seconds, usegmt=True)


def quoted_key_id(key_id: str) -> str:
    """`key_id` so that it cannot end its quotes or its header: what may not stand in a URL anyway is
    percent-encoded."""
    return quote(key_id, safe=_KEY_ID_SAFE)
