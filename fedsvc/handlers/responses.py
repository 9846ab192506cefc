"""Between two actors: Follow, Accept and Reject, Block. Answers to one Follow arrive in order."""

from __future__ import annotations

from fedsvc.domain.activity import Activity
from fedsvc.domain.delivery import Priority
from fedsvc.domain.relations import Relation
from fedsvc.domain.retry import RetryPolicy
from fedsvc.handlers import shapes
from fedsvc.handlers.base import Handler


class Follow(Handler):
    types = ("Follow",)
    priority = Priority.URGENT
    retry = RetryPolicy(8, 2.0, 60, 1800)

    def check(self, activity: Activity) -> None:
        shapes.identified(activity.document, "object")

    def relation(self, activity: Activity) -> Relation:
        return Relation(activity.id)  # its Undo names it


class Answer(Handler):
    """Of a Follow, an invitation or whatever else was asked, which it embeds or names."""

    types = ("Accept", "Reject")
    priority = Priority.URGENT
    retry = RetryPolicy(5, 1.5, 30, 900)

    def check(self, activity: Activity) -> None:
        shapes.named(activity.document, "object")

    def relation(self, activity: Activity) -> Relation:
        return Relation(activity.object_id)


class Block(Handler):
    types = ("Block",)
    priority = Priority.URGENT

    def check(self, activity: Activity) -> None:
        shapes.identified(activity.document, "object")

    def relation(self, activity: Activity) -> Relation:
        return Relation(activity.id)  # its Undo names it
