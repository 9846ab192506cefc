"""What people write: Create, Update, Delete.

What concerns one object shares an ordering key, so that it arrives in order. What was not sent yet is taken
back when something newer makes it pointless: an Update by the next, a Create or Update by the Delete.
"""

from __future__ import annotations

from typing import Any, Final

from fedsvc.domain.activity import Activity
from fedsvc.domain.delivery import Priority
from fedsvc.domain.relations import Relation, Rule
from fedsvc.domain.retry import RetryPolicy
from fedsvc.handlers import shapes
from fedsvc.handlers.base import Handler

#: a moderator may update these for somebody elsewhere: Lemmy's communities are edited by their moderators and
#: attributed to a list of them, and its posts were once locked by an Update
_MODERATED: Final = frozenset({"Person", "Group", "Service", "Application", "Organization", "Feed", "Page"})


class Create(Handler):
    types = ("Create",)
    priority = Priority.NORMAL
    retry = RetryPolicy(10, 2.0, 60, 3600)

    def check(self, activity: Activity) -> None:
        made = shapes.embedded(activity.document, "object")
        if isinstance(made, dict):
            shapes.attributed(activity, made, "activity.object")

    def relation(self, activity: Activity) -> Relation:
        return Relation(activity.object_id, activity.object_id)


class Update(Handler):
    types = ("Update",)
    priority = Priority.NORMAL
    retry = RetryPolicy(10, 2.0, 60, 3600)

    def check(self, activity: Activity) -> None:
        changed = shapes.embedded(activity.document, "object")
        if isinstance(changed, dict) and not _moderated(activity, changed):
            shapes.attributed(activity, changed, "activity.object")

    def relation(self, activity: Activity) -> Relation:
        about = activity.object_id
        return Relation(about, about, Rule.OLDER_UPDATES if about else Rule.NONE)


class Delete(Handler):
    """Of something by its id or Tombstone, of an actor by itself, or by a moderator."""

    types = ("Delete",)
    priority = Priority.BULK
    retry = RetryPolicy(8, 1.5, 30, 1800)

    def check(self, activity: Activity) -> None:
        shapes.identified(activity.document, "object")

    def relation(self, activity: Activity) -> Relation:
        about = activity.object_id
        return Relation(about, about, Rule.OBJECT if about else Rule.NONE)


def _moderated(activity: Activity, changed: dict[str, Any]) -> bool:
    """Whether it may be a moderator's doing: it has an audience, or is of a type that moderators update."""
    return "audience" in activity.document or "audience" in changed or shapes.type_of(changed) in _MODERATED
