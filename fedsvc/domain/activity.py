"""What must be true of an activity, whatever its type, to be delivered at all.

What its type asks for beside that its handler says (`fedsvc.handlers`). Extensions pass untouched, and so do
duplicate keys (the last counts for us; the bytes that are sent are the caller's own).
Source: ActivityStreams 2.0, section 2; ActivityPub, section 3.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import orjson

from fedsvc.domain.errors import InvalidActivity

MAX_ID: Final = 2048
MAX_TYPE: Final = 64
#: a cheap look: a host, maybe a port, and no white space
_URL: Final = re.compile(
    r"https?://(?:\[[0-9a-f:.]+\]|[^\s/?#@\\:\[\]]+)(?::[0-9]{0,5})?(?:[/?#]\S*)?", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Activity:
    id: str
    type: str
    actor: str
    #: of the object, as far as it says so in at most MAX_ID and MAX_TYPE characters; empty otherwise
    object_id: str = ""
    object_type: str = ""
    #: of the object of the object, when that is an activity itself
    inner_object_id: str = ""
    #: of the target, as Add and Remove have one
    target_id: str = ""
    #: the whole of it, for its handler to look at; whoever keeps an Activity keeps all of this in memory
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def is_url(text: str) -> bool:
    """Whether it is an absolute http(s) URL, as far as a cheap look tells."""
    return len(text) <= MAX_ID and _URL.fullmatch(text) is not None and text.isprintable()


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
    inner = first(document.get("object"))
    return Activity(
        id=_url("activity.id", document.get("id")),
        type=_type(document.get("type")),
        actor=_actor(document.get("actor")),
        object_id=_id_of(inner),
        object_type=_told(first(inner.get("type")) if isinstance(inner, dict) else None, MAX_TYPE),
        inner_object_id=_id_of(first(inner.get("object"))) if isinstance(inner, dict) else "",
        target_id=_id_of(first(document.get("target"))),
        document=document,
    )


@lru_cache(1024)
def activity_key(activity_id: str) -> bytes:
    """16 bytes that stand for an activity id in indexes."""
    return hashlib.blake2b(activity_id.encode(errors="surrogatepass"), digest_size=16).digest()


def first(value: Any) -> Any:
    """JSON-LD makes no difference between a value and a list of it; an empty list is none."""
    if isinstance(value, list):
        return value[0] if value else None
    return value


def _url(field: str, value: Any) -> str:
    if value is None:
        raise InvalidActivity(field, "is missing")
    if not isinstance(value, str):
        raise InvalidActivity(field, "is not a string")
    if len(value) > MAX_ID:
        raise InvalidActivity(field, f"is longer than {MAX_ID} characters")
    if not is_url(value):
        raise InvalidActivity(field, "is not an absolute http(s) URL")
    return value


def _type(value: Any) -> str:
    """JSON-LD allows several types; the first is the one that servers go by."""
    value = first(value)
    if value is None or value == "":
        raise InvalidActivity("activity.type", "is missing")
    if not isinstance(value, str):
        raise InvalidActivity("activity.type", "is not a string")
    if len(value) > MAX_TYPE or not value.isprintable() or value.isspace():
        raise InvalidActivity("activity.type", f"is not a name of at most {MAX_TYPE} printable characters")
    return value


def _actor(value: Any) -> str:
    value = first(value)
    if isinstance(value, dict):
        value = value.get("id")
    return _url("activity.actor", value)


def _id_of(value: Any) -> str:
    return _told(value.get("id") if isinstance(value, dict) else value, MAX_ID)


def _told(value: Any, limit: int) -> str:
    """Nobody vouches for what an object says of itself, so it is taken only if it is short and printable."""
    return value if isinstance(value, str) and len(value) <= limit and value.isprintable() else ""
