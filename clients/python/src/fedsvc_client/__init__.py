"""Client of fedsvc, the delivery service for outgoing ActivityPub federation.

from fedsvc_client import FedsvcClient

with FedsvcClient("127.0.0.1:50051") as client:
    queued = client.queue_activity(activity, inbox, private_key=pem, key_id=key_id)
    print(client.get_delivery(queued.delivery_id).state)
"""

from fedsvc_client._async import AsyncFedsvcClient
from fedsvc_client._channel import TLS
from fedsvc_client._configuration import Configuration, ConfigurationError
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
from fedsvc_client._operator_types import (
    AuditEvent,
    AuditPage,
    DeadLetterFilter,
    DeadLetterPage,
    Host,
    HostAttempt,
    HostOrder,
    HostPage,
    HostPolicy,
    HostState,
    MemoryCategory,
    MemoryStatus,
    Operation,
    OperationPage,
    RetryStats,
    Schedule,
    ScheduledFanOut,
    SchedulePage,
)
from fedsvc_client._sync import FedsvcClient
from fedsvc_client._types import (
    Attempt,
    BatchItem,
    Cancelled,
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
    "AuditEvent",
    "AuditPage",
    "BatchItem",
    "Cancelled",
    "Configuration",
    "ConfigurationError",
    "DeadLetterFilter",
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
    "Host",
    "HostAttempt",
    "HostOrder",
    "HostPage",
    "HostPolicy",
    "HostState",
    "InvalidRequest",
    "ItemError",
    "KeyPage",
    "MemoryCategory",
    "MemoryStatus",
    "NotFound",
    "Operation",
    "OperationPage",
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
    "RetryStats",
    "Schedule",
    "SchedulePage",
    "ScheduledFanOut",
    "ServerError",
    "Unavailable",
    "Unimplemented",
]
