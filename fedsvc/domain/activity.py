"""What must be true of an activity to be delivered at all.

Strict about what every receiver would refuse, lenient about the rest: extensions pass untouched, and so do
duplicate keys (the last counts for us; the bytes that are sent are the caller's own).
Source: ActivityStreams 2.0, section 2; ActivityPub, section 3.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from fedsvc.domain.errors import InvalidActivity

MAX_ID: Final = 2048
MAX_TYPE: Final = 64
_URL: Final = re.compile(r"https?://[^\s/?#@\\]+(?:[/?#]\S*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Activity:
    id: str
    type: str
    actor: str
    #: of the object, as far as it says; empty otherwise
    object_id: str = ""
    object_type: str = ""


def parse_activity(body: bytes, *, max_bytes: int) -> Activity:
    """Raises InvalidActivity, which names the field."""
    if not body:
        raise InvalidActivity("activity", "is required")
    if len(body) > max_bytes:
        raise InvalidActivity("activity", f"has {len(body)} bytes; {max_bytes} are allowed")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidActivity("activity", f"is not JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise InvalidActivity("activity", "is not a JSON object")
    inner = document.get("object")
    return Activity(
        id=_url("activity.id", document.get("id")),
        type=_type(document.get("type")),
        actor=_actor(document.get("actor")),
        object_id=inner if isinstance(inner, str) else _member(inner, "id"),
        object_type=_member(inner, "type"),
    )


def activity_key(activity_id: str) -> bytes:
    """16 bytes that stand for an activity id in indexes."""
    return hashlib.blake2b(activity_id.encode(errors="surrogatepass"), digest_size=16).digest()


def _url(field: str, value: Any) -> str:
    if value is None:
        raise InvalidActivity(field, "is missing")
    if not isinstance(value, str):
        raise InvalidActivity(field, "is not a string")
    if len(value) > MAX_ID:
        raise InvalidActivity(field, f"is longer than {MAX_ID} characters")
    if not _URL.fullmatch(value) or not value.isprintable():
        raise InvalidActivity(field, "is not an absolute http(s) URL")
    return value


def _type(value: Any) -> str:
    """JSON-LD allows several types; the first is the one that servers go by."""
    if isinstance(value, list) and value:
        value = value[0]
    if value is None or value == "":
        raise InvalidActivity("activity.type", "is missing")
    if not isinstance(value, str):
        raise InvalidActivity("activity.type", "is not a string")
    if len(value) > MAX_TYPE or not value.isprintable():
        raise InvalidActivity("activity.type", f"is not a name of at most {MAX_TYPE} printable characters")
    return value


def _actor(value: Any) -> str:
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("id")
    return _url("activity.actor", value)


def _member(value: Any, name: str) -> str:
    member = value.get(name) if isinstance(value, dict) else None
    return member if isinstance(member, str) else ""
