"""Add and Remove: moderators, featured posts, members of feeds. In order for each object and collection."""

from __future__ import annotations

from fedsvc.domain.activity import Activity
from fedsvc.domain.delivery import Priority
from fedsvc.domain.relations import Relation
from fedsvc.handlers import shapes
from fedsvc.handlers.base import Handler


class Collecting(Handler):
    """The object may be without an id, as hashtags are that Mastodon features."""

    priority = Priority.NORMAL

    def check(self, activity: Activity) -> None:
        shapes.named(activity.document, "object")
        shapes.named(activity.document, "target")

    def relation(self, activity: Activity) -> Relation:
        about, target = activity.object_id, activity.target_id
        return Relation(f"{about} {target}" if about and target else about)


class Add(Collecting):
    types = ("Add",)


class Remove(Collecting):
    """From a target, or from an origin, as the vocabulary has it."""

    types = ("Remove",)

    def check(self, activity: Activity) -> None:
        shapes.named(activity.document, "object")
        names_origin = "origin" in activity.document and "target" not in activity.document
        shapes.named(activity.document, "origin" if names_origin else "target")
