"""Which ready stream an activity waits in, and its type as one byte.

Priority follows from how long somebody would notice the wait: a follow or a like is one person's
click, a new post may take seconds, and announces and deletes come by the hundred thousand.
"""

from __future__ import annotations

from typing import Final

from fedsvc.domain.delivery import Priority

_PRIORITIES: Final = {
    "Follow": Priority.URGENT,
    "Accept": Priority.URGENT,
    "Reject": Priority.URGENT,
    "Undo": Priority.URGENT,
    "Block": Priority.URGENT,
    "Like": Priority.URGENT,
    "Dislike": Priority.URGENT,
    "Create": Priority.NORMAL,
    "Update": Priority.NORMAL,
    "Flag": Priority.NORMAL,
    "Add": Priority.NORMAL,
    "Remove": Priority.NORMAL,
    "Move": Priority.NORMAL,
}

#: stored in Redis by position: append, never reorder or remove
_TYPE_NAMES: Final = (
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
_TYPE_CODES: Final = {name: code for code, name in enumerate(_TYPE_NAMES) if name}
OTHER_TYPE: Final = 0


def default_priority(activity_type: str) -> Priority:
    """The priority of an activity whose caller named none. Types without a rule are bulk."""
    return _PRIORITIES.get(activity_type, Priority.BULK)


def type_code(activity_type: str) -> int:
    """The stable code (one byte) of an activity type; OTHER_TYPE if it has none."""
    return _TYPE_CODES.get(activity_type, OTHER_TYPE)


def type_name(code: int) -> str:
    """The activity type of a code; empty for OTHER_TYPE and for codes of a newer fedsvc."""
    return _TYPE_NAMES[code] if 0 <= code < len(_TYPE_NAMES) else ""
