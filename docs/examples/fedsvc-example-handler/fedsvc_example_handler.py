"""Handlers for EmojiReact (Pleroma, Misskey and others) and for Join (of an event, Mobilizon)."""

from __future__ import annotations

import logging

from fedsvc.handlers import (
    Activity,
    DeliveryOutcome,
    DeliveryState,
    Handler,
    InvalidActivity,
    Priority,
    Relation,
    RetryPolicy,
    Rule,
    shapes,
)

log = logging.getLogger(__name__)


class EmojiReact(Handler):
    """A vote by another name. Of one actor's reactions to a post only the last counts."""

    types = ("EmojiReact",)
    priority = Priority.URGENT
    retry = RetryPolicy(retries=5, factor=1.5, first_delay_s=30, longest_delay_s=600)

    def check(self, activity: Activity) -> None:
        shapes.identified(activity.document, "object")
        emoji = activity.document.get("content")
        if not isinstance(emoji, str) or not emoji:
            raise InvalidActivity("activity.content", "is no emoji")

    def relation(self, activity: Activity) -> Relation:
        reaction = f"{activity.actor} {activity.object_id}"
        return Relation(ordering_key=activity.id, family=reaction, rule=Rule.SAME_KEY)


class Join(Handler):
    """Somebody wants to take part; who organises the event should know."""

    types = ("Join",)
    priority = Priority.NORMAL
    retry = RetryPolicy(retries=2, factor=4.0, first_delay_s=60, longest_delay_s=3600)

    def check(self, activity: Activity) -> None:
        shapes.identified(activity.document, "object")

    def relation(self, activity: Activity) -> Relation:
        return Relation(ordering_key=activity.id)  # its Undo names it

    def on_outcome(self, outcome: DeliveryOutcome) -> None:
        if outcome.state is DeliveryState.DEAD:
            log.warning("%s has not heard of %s", outcome.host, outcome.activity_id)
