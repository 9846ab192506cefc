"""Times of requests, in milliseconds."""

from __future__ import annotations

from typing import Any, Final

from fedsvc.errors import InvalidInput

#: seconds since the epoch at which the year 10000 begins
_END: Final = 253_402_300_800
#: seconds of the longest duration: 10,000 years, as the contract of Duration has it
_LONGEST: Final = 315_576_000_000


def time_ms(message: Any, name: str, field: str = "") -> int:
    """Milliseconds since the epoch of a Timestamp, 0 if it is not there. Raises InvalidInput, of `field`
    (of the name if not given)."""
    if not message.HasField(name):
        return 0
    stamp = getattr(message, name)
    if not 0 <= stamp.seconds < _END or not 0 <= stamp.nanos < 1_000_000_000:
        raise InvalidInput(field or name, "is not a time between 1970 and 9999")
    # 0 means "none" in the queue; the epoch itself is as good one millisecond later.
    return max(1, int(stamp.seconds) * 1000 + int(stamp.nanos) // 1_000_000)


def duration_ms(message: Any, name: str, field: str = "") -> int:
    """Milliseconds of a Duration, 0 if it is not there. Raises InvalidInput if it is not positive."""
    if not message.HasField(name):
        return 0
    span = getattr(message, name)
    ms = int(span.seconds) * 1000 + int(span.nanos) // 1_000_000
    if abs(span.seconds) > _LONGEST or abs(span.nanos) >= 1_000_000_000 or ms <= 0:
        raise InvalidInput(field or name, "is not a duration of at least a millisecond")
    return ms
