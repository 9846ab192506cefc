"""An activity's type as one byte, as the queue stores it."""

from __future__ import annotations

from typing import Final

#: stored in Redis by position: append, never reorder or remove
TYPE_NAMES: Final = (
    "",
    "Create",
    "Update",
    "Delete",
    "Follow",
    "Accept",
    "Reject",
    "Like",
    "Dislike",
    "Announce",
    "Undo",
    "Add",
    "Remove",
    "Block",
    "Flag",
    "Move",
)
_TYPE_CODES: Final = {name: code for code, name in enumerate(TYPE_NAMES) if name}
OTHER_TYPE: Final = 0


def type_code(activity_type: str) -> int:
    """The stable code (one byte) of an activity type; OTHER_TYPE if it has none."""
    return _TYPE_CODES.get(activity_type, OTHER_TYPE)


def type_name(code: int) -> str:
    """The activity type of a code; empty for OTHER_TYPE and for codes of a newer fedsvc."""
    return TYPE_NAMES[code] if 0 <= code < len(TYPE_NAMES) else ""
