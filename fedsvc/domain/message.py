"""A message: what all deliveries of one activity, signed by one key, have in common.

Stored once (per partition of the queue), however many inboxes it goes to.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Final, Self

import orjson

CONTENT_TYPE: Final = "application/activity+json"


@dataclass(slots=True)  # to be frozen trebles what it costs to make one; nobody changes it
class Message:
    #: the exact bytes that are signed and sent
    body: bytes
    activity_id: str
    activity_type: str
    actor: str
    #: URL by which receivers find the public key; its host is the origin
    key_id: str
    #: of the private key in the key store: its fingerprint, or that of a registered one
    key_name: str
    #: host of `key_id`: the instance that speaks
    origin: str
    content_type: str = CONTENT_TYPE
    ordering_key: str = ""
    supersede_key: str = ""
    request_id: str = ""
    #: W3C Trace Context of the call, as `tracing.carried` has it; empty if it is not traced
    trace: str = ""
    #: base64 of the SHA-256 of `body`; computed once, when the message is made
    digest: str = ""
    #: what `body` was made from, if it is not the caller's own; not kept
    source: str = field(default="", compare=False)

    @classmethod
    def digest_of(cls, body: bytes) -> str:
        return base64.b64encode(hashlib.sha256(body).digest()).decode()

    def pack(self) -> bytes:
        """Everything but the body."""
        return orjson.dumps(
            [
                self.activity_id,
                self.activity_type,
                self.actor,
                self.key_id,
                self.key_name,
                self.origin,
                self.content_type,
                self.ordering_key,
                self.supersede_key,
                self.request_id,
                self.trace,
                self.digest,
            ]
        )

    @classmethod
    def unpack(cls, body: bytes, packed: bytes) -> Self:
        """Raises ValueError if `packed` is not what `pack` makes."""
        fields = orjson.loads(packed)
        if not isinstance(fields, list) or len(fields) < 12 or not all(isinstance(f, str) for f in fields):
            raise ValueError("not a packed message")
        return cls(body, *fields[:12])

    def identity(self) -> bytes:
        """16 bytes that two messages share only if they may be stored as one."""
        same = "\0".join(
            (
                self.activity_id,
                self.key_id,
                self.key_name,
                self.content_type,
                self.ordering_key,
                self.supersede_key,
            )
        )
        return hashlib.sha256((self.source or self.digest).encode() + b"\0" + same.encode()).digest()[:16]


#: in place of one of which nothing is known
UNKNOWN: Final = Message(b"", "", "", "", "", "", "")
