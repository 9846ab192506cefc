"""Fields of requests, as the service takes them. Each raises InvalidInput, which names the field."""

from __future__ import annotations

from typing import Any, Final

from fedsvc.domain.delivery import DeliveryId, Priority
from fedsvc.domain.inbox import parse_host
from fedsvc.errors import InvalidInput

#: characters of a request id
MAX_REQUEST_ID: Final = 128
#: an enumeration that is called takes ten times as long
_PRIORITIES: Final = {int(priority): priority for priority in Priority}
#: seconds since the epoch at which the year 10000 begins, of which no Timestamp tells
END_S: Final = 253_402_300_800
#: seconds of the longest duration: 10,000 years, as the contract of Duration has it
_LONGEST: Final = 315_576_000_000


def delivery_id(text: str, field: str = "delivery_id") -> DeliveryId:
    try:
        return DeliveryId.parse(text)
    except ValueError as error:
        raise InvalidInput(field, str(error)) from None


def host_name(field: str, text: str) -> str:
    """In normal form."""
    if not text:
        raise InvalidInput(field, "is required")
    try:
        return parse_host(text)
    except ValueError as error:
        raise InvalidInput(field, str(error)) from None


def plain_text(field: str, text: str, limit: int) -> str:
    """At most so many characters."""
    if len(text) > limit:
        raise InvalidInput(field, f"has {len(text)} characters; {limit} are allowed")
    if not text.isprintable():
        raise InvalidInput(field, "has control characters")
    return text


def request_name(text: str) -> str:
    """Of a `request_id`; empty if the call has none."""
    return plain_text("request_id", text, MAX_REQUEST_ID)


def priority(field: str, number: int) -> Priority | None:
    """None if none is given."""
    if number and number not in _PRIORITIES:
        raise InvalidInput(field, f"{number} is not a priority")
    return _PRIORITIES.get(number)


def http_status(field: str, number: int) -> int:
    """0 for any."""
    if number and not 100 <= number <= 999:
        raise InvalidInput(field, f"{number} is not a status of HTTP")
    return number


def time_ms(message: Any, name: str, field: str = "") -> int:
    """Milliseconds since the epoch of a Timestamp, 0 if it is not there. `field`: its path, if it is within
    another message."""
    if not message.HasField(name):
        return 0
    stamp = getattr(message, name)
    if not 0 <= stamp.seconds < END_S or not 0 <= stamp.nanos < 1_000_000_000:
        raise InvalidInput(field or name, "is not a time between 1970 and 9999")
    # 0 means "none" in the queue; the epoch itself is as good one millisecond later.
    return max(1, int(stamp.seconds) * 1000 + int(stamp.nanos) // 1_000_000)


def duration_ms(message: Any, name: str, field: str = "") -> int:
    """Likewise of a Duration, which must be positive."""
    if not message.HasField(name):
        return 0
    span = getattr(message, name)
    ms = int(span.seconds) * 1000 + int(span.nanos) // 1_000_000
    if abs(span.seconds) > _LONGEST or abs(span.nanos) >= 1_000_000_000 or ms <= 0:
        raise InvalidInput(field or name, "is not a duration of at least a millisecond")
    return ms
