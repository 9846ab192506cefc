"""Client of fedsvc, the delivery service for outgoing ActivityPub federation.

from fedsvc_client import FedsvcClient

with FedsvcClient("127.0.0.1:50051") as client:
    queued = client.queue_activity(activity, inbox, private_key=pem, key_id=key_id)
    print(client.get_delivery(queued.delivery_id).state)
"""

from fedsvc_client._async import AsyncFedsvcClient
from fedsvc_client._channel import TLS
from fedsvc_client._exceptions import (
    DeadlineExceeded,
    FedsvcError,
    FieldViolation,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RequestIdReused,
    ResourceExhausted,
    ServerError,
    Unavailable,
    Unimplemented,
)
from fedsvc_client._sync import FedsvcClient
from fedsvc_client._types import (
    Attempt,
    BatchItem,
    Cancelled,
    DeadLetterPage,
    Delivery,
    DeliveryPage,
    DeliveryState,
    EventType,
    FanOut,
    ItemError,
    KeyPage,
    OutcomeEvent,
    Priority,
    PriorityStats,
    QueuedActivity,
    QueueStats,
    Rates,
    RegisteredKey,
    RejectedInbox,
)

__version__ = "0.1.0"

__all__ = [
    "TLS",
    "AsyncFedsvcClient",
    "Attempt",
    "BatchItem",
    "Cancelled",
    "DeadLetterPage",
    "DeadlineExceeded",
    "Delivery",
    "DeliveryPage",
    "DeliveryState",
    "EventType",
    "FanOut",
    "FedsvcClient",
    "FedsvcError",
    "FieldViolation",
    "InvalidRequest",
    "ItemError",
    "KeyPage",
    "NotFound",
    "OutcomeEvent",
    "PermissionDenied",
    "Priority",
    "PriorityStats",
    "QueueStats",
    "QueuedActivity",
    "Rates",
    "RegisteredKey",
    "RejectedInbox",
    "RequestIdReused",
    "ResourceExhausted",
    "ServerError",
    "Unavailable",
    "Unimplemented",
]
