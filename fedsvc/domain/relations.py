"""What an activity has to do with others: whose order it keeps, and which it makes pointless.

Create, Update, Delete and Undo that concern one object share an ordering key, so that they arrive in order;
unrelated activities do not wait for each other. What was not sent yet is taken back when something newer
makes it pointless: an Update by the next Update, a Create or Update by the Delete, a Like by its Undo. An
announced activity keeps the order of what it announces.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from fedsvc.domain.activity import Activity

#: what an Undo may undo: they are in the order of their own id, which the Undo names
_UNDOABLE: Final = frozenset({"Like", "Dislike", "Follow", "Block", "Announce"})
#: they concern the object they name, as do the answers to a Follow
_OF_OBJECT: Final = frozenset({"Create", "Update", "Delete", "Undo", "Accept", "Reject"})


class Rule(IntEnum):
    """What a delivery takes back that was not sent yet, to the same inbox. See `lua/enqueue.lua`."""

    NONE = 0
    #: everything that has the same explicit supersede key
    SAME_KEY = 1
    #: Updates of the same object
    OLDER_UPDATES = 2
    #: Create and Updates of the same object
    OBJECT = 3
    #: the activity that it undoes; if that was never tried, neither is sent
    UNDONE = 4


@dataclass(frozen=True, slots=True)
class Relation:
    #: deliveries that share it and a host go in order; empty for none
    ordering_key: str = ""
    #: among whose deliveries it takes back some, or is taken back itself; empty for none
    family: str = ""
    rule: Rule = Rule.NONE
    #: id of the activity that it undoes
    undoes: str = ""


UNRELATED: Final = Relation()


def relation_of(activity: Activity, *, ordering_key: str = "", supersede_key: str = "") -> Relation:
    """The relation by the activity's type; what the caller says has precedence."""
    by_type = _by_type(activity)
    order = ordering_key or by_type.ordering_key
    if supersede_key:
        return Relation(order, supersede_key, Rule.SAME_KEY)
    return Relation(order, by_type.family, by_type.rule, by_type.undoes)


def group_of(origin: str, key: str) -> str:
    """Names a group of deliveries in the queue: two origins share none. Hex; empty for no key."""
    if not key:
        return ""
    return hashlib.blake2b(f"{origin}\0{key}".encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _by_type(activity: Activity) -> Relation:
    about = activity.object_id
    match activity.type:
        case "Create":
            return Relation(about, about)
        case "Update":
            return Relation(about, about, Rule.OLDER_UPDATES if about else Rule.NONE)
        case "Delete":
            return Relation(about, about, Rule.OBJECT if about else Rule.NONE)
        case "Undo":
            return Relation(about, "", Rule.UNDONE if about else Rule.NONE, about)
        case "Accept" | "Reject":
            return Relation(about)
        case "Add" | "Remove":
            return Relation(f"{about} {activity.target_id}" if about and activity.target_id else about)
        case "Announce" if activity.object_type in _OF_OBJECT and activity.inner_object_id:
            return Relation(activity.inner_object_id)
        case "Announce" if activity.object_type in _UNDOABLE and about:
            return Relation(about)
        case _ if activity.type in _UNDOABLE:
            return Relation(activity.id)
        case _:
            return UNRELATED
