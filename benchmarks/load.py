"""What all contenders deliver: the same activities of 2 KB, to the same hosts, signed by the same keys."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

BODY_BYTES: Final = 2048
#: as an activity of an instance of middle size has them
HOSTS: Final = 1000
#: so few that a host's limit of what is in flight to it, which only ours has, is felt
FEW_HOSTS: Final = 50
#: deliveries under way at a time, of every contender
CONCURRENCY: Final = 128


def activity(number: int) -> dict[str, Any]:
    """BODY_BYTES long as compact JSON, whatever the number (below a billion)."""
    made = {
        "@context": "https://www.w3.org/ns/activitystreams",
        "id": f"https://me.example/activities/{number:09}",
        "type": "Announce",
        "actor": "https://me.example/u/ada",
        "object": {"id": "https://me.example/page", "type": "Page", "content": ""},
    }
    made["object"]["content"] = "x" * (BODY_BYTES - len(compact(made)))  # type: ignore[index]
    return made


def compact(document: dict[str, Any]) -> bytes:
    """As the client sends it."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


@cache
def pem(algorithm: str) -> str:
    """A private key, rsa (2048 bits) or ed25519; the same all the time."""
    key = (
        rsa.generate_private_key(65537, 2048) if algorithm == "rsa" else ed25519.Ed25519PrivateKey.generate()
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def key_id(algorithm: str) -> str:
    return f"https://me.example/u/ada#{algorithm}-key"


def address(number: int) -> str:
    """Of host `number`, below 15,000: all of 127.0.0.0/8 belongs to the loopback interface. All are equally
    long, so that requests can be compared by their size."""
    return f"127.80.{100 + number // 100}.{100 + number % 100}"
