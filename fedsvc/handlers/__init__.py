"""One small handler per activity type. What stands here is the stable surface for handlers of others."""

from fedsvc.domain.activity import Activity
from fedsvc.domain.delivery import DeliveryState, Priority, Reason
from fedsvc.domain.errors import InvalidActivity
from fedsvc.domain.relations import UNRELATED, Relation, Rule
from fedsvc.domain.retry import DEFAULT_POLICY, RetryPolicy
from fedsvc.handlers import shapes
from fedsvc.handlers.base import DeliveryOutcome, Handler

__all__ = [
    "DEFAULT_POLICY",
    "UNRELATED",
    "Activity",
    "DeliveryOutcome",
    "DeliveryState",
    "Handler",
    "InvalidActivity",
    "Priority",
    "Reason",
    "Relation",
    "RetryPolicy",
    "Rule",
    "shapes",
]
