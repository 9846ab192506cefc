"""One click each: Like, Dislike, Announce, and Undo, which takes such a thing back.

What may be undone is in the order of its own id, which the Undo names. An announced activity keeps the order
of what it announces.
"""

from __future__ import annotations

from typing import Any, Final

from fedsvc.domain.activity import Activity
from fedsvc.domain.delivery import Priority
from fedsvc.domain.errors import InvalidActivity
from fedsvc.domain.relations import Relation, Rule
from fedsvc.domain.retry import RetryPolicy
from fedsvc.handlers import shapes
from fedsvc.handlers.base import Handler

#: when announced they are in the order of their own id, which an Undo names
_UNDOABLE: Final = frozenset({"Like", "Dislike", "Follow", "Block", "Announce"})
#: when announced they are in the order of the object they name
_OF_OBJECT: Final = frozenset({"Create", "Update", "Delete", "Undo", "Accept", "Reject"})
#: types that are known to be activities: those of the ActivityStreams 2.0 vocabulary, Lemmy and Pleroma
_ACTIVITIES: Final = (
    _UNDOABLE
    | _OF_OBJECT
    | {"Add", "Arrive", "EmojiReact", "Flag", "Ignore", "Invite", "Join", "Leave", "Listen", "Lock", "Move"}
    | {"Offer", "Read", "Remove", "TentativeAccept", "TentativeReject", "Travel", "View"}
)


class Vote(Handler):
    types = ("Like", "Dislike")
    priority = Priority.URGENT
    retry = RetryPolicy(5, 1.5, 30, 600)

    def check(self, activity: Activity) -> None:
        shapes.identified(activity.document, "object")

    def relation(self, activity: Activity) -> Relation:
        return Relation(activity.id)


class Announce(Handler):
    """Of something by its id (a boost), or of an activity that a group passes on (FEP-1b12)."""

    types = ("Announce",)
    priority = Priority.BULK
    retry = RetryPolicy(6, 2.0, 45, 1200)

    def check(self, activity: Activity) -> None:
        announced = shapes.required(activity.document, "object")
        if isinstance(announced, dict):
            shapes.required_id(announced, "activity.object")
            if _is_activity(announced):
                _announced(announced)

    def relation(self, activity: Activity) -> Relation:
        if activity.object_type in _OF_OBJECT and activity.inner_object_id:
            return Relation(activity.inner_object_id)
        if activity.object_type in _UNDOABLE and activity.object_id:
            return Relation(activity.object_id)
        return Relation(activity.id)


class Undo(Handler):
    """Of what it embeds or names; nobody undoes what another did."""

    types = ("Undo",)
    priority = Priority.URGENT
    retry = RetryPolicy(7, 1.8, 45, 1800)

    def check(self, activity: Activity) -> None:
        undone = shapes.named(activity.document, "object")
        if isinstance(undone, dict):
            actors = shapes.ids_of(undone.get("actor"))
            if actors and activity.actor not in actors:
                raise InvalidActivity("activity.object.actor", "is not activity.actor")

    def relation(self, activity: Activity) -> Relation:
        about = activity.object_id
        return Relation(about, "", Rule.UNDONE if about else Rule.NONE, about)


def _is_activity(value: dict[str, Any]) -> bool:
    """Whether it is an activity or was meant to be one."""
    return shapes.type_of(value) in _ACTIVITIES or "actor" in value or "object" in value


def _announced(inner: dict[str, Any]) -> None:
    if not shapes.type_of(inner):
        raise InvalidActivity("activity.object.type", "is missing")
    actor = shapes.identified(inner, "actor", "activity.object")
    if shapes.host_of(actor if isinstance(actor, str) else actor["id"]) == "":
        raise InvalidActivity("activity.object.actor", "is not an absolute http(s) URL")
