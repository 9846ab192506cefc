"""What a handler is. This module and `shapes.py` are the stable surface for handlers of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsvc.domain.activity import Activity
from fedsvc.domain.delivery import DeliveryState, Priority, Reason
from fedsvc.domain.relations import UNRELATED, Relation
from fedsvc.domain.retry import DEFAULT_POLICY, RetryPolicy


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """How a delivery ended that a worker had tried, or was about to."""

    delivery_id: str
    activity_id: str
    activity_type: str
    inbox: str
    host: str
    #: DELIVERED, DEAD or EXPIRED
    state: DeliveryState
    #: last HTTP status, 0 when there was no answer
    status: int
    reason: Reason | None
    attempts: int
    #: the first 1024 bytes of the last answer's body, or what went wrong on our side, as text
    snippet: str


class Handler:
    """The rules of one or some activity types. Subclasses set what differs; one object serves all calls.

    `check`, `relation` and `priority` are asked by servers for each call, on their event loop: they must be
    quick and wait for nothing. What they raise beside InvalidActivity fails the call (FAILED_PRECONDITION).
    `retry` is asked by workers after a failure; if that raises, the delivery is a dead letter
    (HANDLER_ERROR).
    """

    #: names of types, as they stand in `type`
    types: ClassVar[tuple[str, ...]] = ()
    #: whether it may take the place of a built-in handler
    replaces: ClassVar[bool] = False
    #: when the caller names none
    priority: ClassVar[Priority] = Priority.BULK
    retry: ClassVar[RetryPolicy] = DEFAULT_POLICY

    def check(self, activity: Activity) -> None:
        """Raises InvalidActivity, which names the field, for what every receiver would refuse. Id, type and
        actor have been checked already."""

    def relation(self, activity: Activity) -> Relation:
        """Whose order the activity keeps and what it makes pointless. What the caller asks for has
        precedence."""
        return UNRELATED

    def on_outcome(self, outcome: DeliveryOutcome) -> None:
        """React to a delivery that ended with a worker: DELIVERED, DEAD or EXPIRED.

        Called in a thread of the worker process, one outcome at a time, after Redis has confirmed it. It may
        take its time: deliveries do not wait for it. But it is a convenience, not a promise: outcomes are
        lost when the process dies and dropped when too many wait (`fedsvc_reactions_dropped_total`), and what
        ends without a worker (cancelled, superseded, expired while it waited) does not come here.
        WatchOutcomes tells all, at least once. What this raises is logged and harms nothing.
        """
