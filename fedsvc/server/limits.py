"""How much of one caller, and of one origin, a server process takes in: rates and sizes.

Token buckets that may go into debt: a call is let in while there is anything left, and pays for all that it
brings, so that a fan-out larger than the bucket is possible and is paid for afterwards. Each server process
counts for itself.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fedsvc.config import Settings
from fedsvc.domain.inbox import parse_host
from fedsvc.errors import ConfigurationError, InvalidInput, RateLimited
from fedsvc.server.caller import Caller

#: seconds of its rate that a bucket holds
_BURST_S: Final = 5.0
#: the lowest rate that is not 0: one in eleven days. What it takes to get over a call fits in an answer
_LEAST_RATE: Final = 1e-6
#: buckets that are kept, at most; the longest unused is forgotten
_MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class Limit:
    """None: the general limit. Rates are per second, 0 for none."""

    calls: float | None = None
    rate: float | None = None
    bytes: int | None = None
    fan_out: int | None = None
    #: deliveries pending, 0 for no limit
    backlog: int | None = None


class _Bucket:
    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._left = max(1.0, rate * _BURST_S)
        self._at = now

    def take(self, n: float, now: float) -> float:
        """Seconds until there is something again; 0 if there was, and `n` were taken."""
        most = max(1.0, self._rate * _BURST_S)
        self._left = min(most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left >= 1.0:  # less than a whole one is nothing
            self._left -= n
            return 0.0
        return (1.0 - self._left) / self._rate


class Limits:
    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigurationError."""
        self._settings = settings
        self._clock = clock
        self._single = parse_limits(settings.limits)
        for setting in ("caller_calls", "caller_rate", "origin_rate"):
            if not _is_rate(rate := getattr(settings, setting)):
                problem = f"{rate:g} a second is less than {_LEAST_RATE:g}; 0 is no limit"
                raise ConfigurationError(f"FEDSVC_{setting.upper()}", problem)
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def call(self, caller: Caller) -> None:
        """One call. Raises RateLimited."""
        own = self._single.get(caller.name)
        rate = self._settings.caller_calls if own is None or own.calls is None else own.calls
        self._take("calls", caller.name, rate, 1, caller.name)

    def deliveries(self, caller: Caller, origin: str, n: int) -> None:
        """`n` deliveries of an origin. Raises RateLimited."""
        for name, general, told in (
            (f"@{origin}", self._settings.origin_rate, origin),
            (caller.name, self._settings.caller_rate, caller.name),
        ):
            own = self._single.get(name)
            rate = general if own is None or own.rate is None else own.rate
            self._take("deliveries", name, rate, n, told)

    def max_bytes(self, caller: Caller) -> int:
        """Of one activity, for all that is known before it is read."""
        own = self._single.get(caller.name)
        return self._settings.max_activity_bytes if own is None or own.bytes is None else own.bytes

    def check_size(self, origin: str, size: int) -> None:
        """Of one activity of an origin, in bytes. Raises InvalidInput."""
        own = self._single.get(f"@{origin}")
        if own is not None and own.bytes is not None and size > own.bytes:
            raise InvalidInput("activity", f"has {size} bytes; {own.bytes} are allowed for {origin}")

    def max_fan_out(self, caller: Caller) -> int:
        own = self._single.get(caller.name)
        return self._settings.max_fan_out if own is None or own.fan_out is None else own.fan_out

    def origin_backlog(self, origin: str) -> int:
        """Deliveries of an origin that may be pending; 0 for no limit."""
        own = self._single.get(f"@{origin}")
        return self._settings.origin_backlog if own is None or own.backlog is None else own.backlog

    def caller_backlog(self, caller: Caller) -> int:
        """Deliveries of all origins of a caller that may be pending; 0 for no limit."""
        own = self._single.get(caller.name)
        return self._settings.caller_backlog if own is None or own.backlog is None else own.backlog

    def _take(self, what: str, whose: str, rate: float, n: float, told: str) -> None:
        if not rate:
            return
        name, now = f"{what} {whose}", self._clock()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(rate, now)
            if len(self._buckets) > _MOST:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        wait = bucket.take(n, now)
        if wait:
            raise RateLimited(f"more than {rate:g} {what} a second of {told}", math.ceil(wait))


def _is_rate(number: float) -> bool:
    return number == 0 or number >= _LEAST_RATE


def parse_limits(text: str) -> dict[str, Limit]:
    """As FEDSVC_LIMITS has them. Raises ConfigurationError."""
    found: dict[str, Limit] = {}
    for place, part in enumerate(text.replace(",", " ").split(), 1):
        # From the right: an origin may be an IPv6 address.
        name, values = part, {}
        while "=" in name.rpartition(":")[2]:
            name, _, pair = name.rpartition(":")
            key, _, value = pair.partition("=")
            try:
                number = float(value)
                least = 0 if key == "backlog" else 1
                whole = key not in ("calls", "rate")
                fits = 0 <= number <= 1e9 and (number == int(number) >= least if whole else _is_rate(number))
                if not fits or key not in _KINDS[name.startswith("@")]:
                    raise ValueError
            except ValueError:
                raise ConfigurationError("FEDSVC_LIMITS", f"entry {place}: {pair} is not a limit") from None
            values[key] = int(number) if whole else number
        if name.startswith("@"):
            try:
                name = f"@{parse_host(name[1:])}"
            except ValueError:
                raise ConfigurationError("FEDSVC_LIMITS", f"entry {place} is not of a host") from None
        if not values or not name or name in found:
            raise ConfigurationError(
                "FEDSVC_LIMITS", f"entry {place} is not NAME:limit=.. or @HOST:limit=.., or comes twice"
            )
        found[name] = Limit(**values)  # type: ignore[arg-type]
    return found


#: by whether it is of an origin
_KINDS: Final = {False: ("calls", "rate", "bytes", "fan_out", "backlog"), True: ("rate", "bytes", "backlog")}
