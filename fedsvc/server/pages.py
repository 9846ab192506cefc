"""Page sizes and tokens. A token says where to go on and belongs to one list with one set of arguments."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any, Final

import orjson

from fedsvc.errors import InvalidInput

DEFAULT_SIZE: Final = 100
LARGEST: Final = 1000


def page_size(asked: int) -> int:
    """Raises InvalidInput."""
    if asked < 0:
        raise InvalidInput("page_size", "is negative")
    return min(asked or DEFAULT_SIZE, LARGEST)


def encode(position: Any, *arguments: object) -> str:
    """`position`: what JSON can say. `arguments`: what must not change from page to page."""
    return base64.urlsafe_b64encode(orjson.dumps([_digest(arguments), position])).decode().rstrip("=")


def decode(token: str, *arguments: object) -> Any:
    """The position, None for the first page. Raises InvalidInput."""
    if not token:
        return None
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        digest, position = orjson.loads(raw)
    except (binascii.Error, ValueError, TypeError):
        raise InvalidInput("page_token", "is not one that this server gave") from None
    if digest != _digest(arguments):
        raise InvalidInput("page_token", "was given for a call with other arguments")
    return position


def _digest(arguments: tuple[object, ...]) -> str:
    return hashlib.blake2b(repr(arguments).encode(), digest_size=6).hexdigest()
