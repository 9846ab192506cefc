"""`get_producer()` of the older federation module, on fedsvc.

There its methods were coroutines; here they do their work at once. What they return may be awaited all the
same, so that code written for either is served. To await it blocks the event loop for the milliseconds of the
call: code that lives on one should use `AsyncFedsvcClient`."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from fedsvc_client._configuration import shared_client
from fedsvc_client._exceptions import InvalidRequest
from fedsvc_client._types import Priority
from fedsvc_client.pyfedi._sending import complete


class DeliveryName(str):
    """The id of a delivery; awaited, it is itself."""

    def __await__(self) -> Generator[None, None, DeliveryName]:
        yield from ()
        return self


class StatsByName(dict[str, Any]):
    """Figures by name; awaited, they are themselves."""

    def __await__(self) -> Generator[None, None, StatsByName]:
        yield from ()
        return self


class FederationProducer:
    """Puts activities on fedsvc's queue."""

    def queue_activity(
        self,
        activity: Mapping[str, Any],
        priority: Any = None,
        destination: str | None = None,
        private_key: str | None = None,
        key_id: str | None = None,
        request_id: str | None = None,
    ) -> DeliveryName:
        """Have `activity` delivered to the inbox `destination`. Returns the id of the delivery.

        `priority`: urgent, normal or bulk, or a member of an enum of such values; None, or the older module's
        retry: by the activity's type. Raises InvalidRequest without a destination, as for an activity that
        came in: what comes in is the application's. Raises FedsvcError."""
        if not destination:
            raise InvalidRequest("destination is missing: fedsvc takes what goes out, not what comes in")
        named = str(getattr(priority, "value", priority) or "").lower()
        queued = shared_client().queue_activity(
            complete(activity),
            destination,
            private_key=private_key,
            key_id=key_id or "",
            priority=None if named in ("", "retry") else named,
            request_id=request_id,
        )
        return DeliveryName(queued.delivery_id)

    def get_queue_stats(self) -> StatsByName:
        """For each of urgent, normal and bulk `length` (ready and in flight) and `oldest_age` (seconds), and
        the totals of the queue: accepted, delivered, dead, pending, retry, scheduled, parked and so on.
        Raises FedsvcError."""
        stats = shared_client().get_queue_stats()
        told = StatsByName(
            {
                name.value.lower(): {
                    "length": found.ready + found.in_flight,
                    "oldest_age": found.oldest_age.total_seconds(),
                }
                for name, found in stats.priorities.items()
                if name is not Priority.UNSPECIFIED
            }
        )
        for name in _TOTALS:
            told[name] = getattr(stats, name)
        return told


#: what is told of the queue as a whole
_TOTALS = (
    "accepted",
    "delivered",
    "dead",
    "purged",
    "cancelled",
    "superseded",
    "expired",
    "pending",
    "ready",
    "in_flight",
    "retry",
    "scheduled",
    "parked",
    "bottleneck",
)
_producer = FederationProducer()


def get_producer() -> FederationProducer:
    """The producer of this process."""
    return _producer
