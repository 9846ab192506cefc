"""Flag (a report) and Move (of an account, or of a post to another community)."""

from __future__ import annotations

from fedsvc.domain.activity import Activity
from fedsvc.domain.delivery import Priority
from fedsvc.domain.errors import InvalidActivity
from fedsvc.handlers import shapes
from fedsvc.handlers.base import Handler


class Flag(Handler):
    """Of one or several: Mastodon reports an account together with its posts."""

    types = ("Flag",)
    priority = Priority.NORMAL

    def check(self, activity: Activity) -> None:
        reported = activity.document.get("object")
        if isinstance(reported, list) and len(reported) > 1:
            if not any(map(shapes.is_reference, shapes.ids_of(reported))):
                raise InvalidActivity("activity.object", "has nothing that is named by an absolute URI")
        else:
            shapes.identified(activity.document, "object")


class Move(Handler):
    types = ("Move",)
    priority = Priority.NORMAL

    def check(self, activity: Activity) -> None:
        shapes.identified(activity.document, "object")
        shapes.identified(activity.document, "target")
