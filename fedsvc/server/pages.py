"""Page sizes and tokens. A token says where to go on and belongs to one list with one set of arguments.

Tokens are not signed: whoever knows how can make one up. It leads nowhere that its maker may not go anyway,
as long as the position in it is such as the list gives: that is what `read` is for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from typing import Any, Final, TypeVar

import orjson

from fedsvc.errors import InvalidInput

DEFAULT_SIZE: Final = 100
LARGEST: Final = 1000
#: characters of a text in a position, at most
_LONGEST: Final = 8192

Position = TypeVar("Position")


def page_size(asked: int) -> int:
    """Raises InvalidInput."""
    if asked < 0:
        raise InvalidInput("page_size", "is negative")
    return min(asked or DEFAULT_SIZE, LARGEST)


def encode(position: Any, *arguments: object) -> str:
    """`position`: what JSON can say. `arguments`: what must not change from page to page."""
    return base64.urlsafe_b64encode(orjson.dumps([_digest(arguments), position])).decode().rstrip("=")


def decode(token: str, *arguments: object, read: Callable[[Any], Position]) -> Position | None:
    """The position, None for the first page. `read` makes it of what JSON has there, which may be anything,
    or raises ValueError. Raises InvalidInput."""
    if not token:
        return None
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        digest, position = orjson.loads(raw)
    except (binascii.Error, ValueError, TypeError):
        raise InvalidInput("page_token", "is not one that this server gave") from None
    if digest != _digest(arguments):
        raise InvalidInput("page_token", "was given for a call with other arguments")
    try:
        return read(position)
    except ValueError:
        raise InvalidInput("page_token", "is not one that this server gave") from None


def number(position: Any) -> int:
    """A position that is a number of 63 bits. Raises ValueError."""
    if type(position) is not int or not 0 <= position < 2**63:
        raise ValueError("is no number")
    return position


def text(position: Any) -> str:
    """A position that is a text as Redis and every database take it. Raises ValueError."""
    if not isinstance(position, str) or len(position) > _LONGEST or "\0" in position:
        raise ValueError("is no text")
    return position


def number_and_text(position: Any) -> tuple[int, str]:
    """A position of both. Raises ValueError."""
    if not isinstance(position, list) or len(position) != 2:
        raise ValueError("is no number and text")
    return number(position[0]), text(position[1])


def _digest(arguments: tuple[object, ...]) -> str:
    return hashlib.blake2b(repr(arguments).encode(), digest_size=6).hexdigest()
