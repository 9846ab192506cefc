"""A delivery's outcome as text of JSON: what the streams `outcomes` and `dead` carry.

The state and the number of the outcome are not inside: they are the entry's own, since the script that
appends it has the last word on both.
"""

from __future__ import annotations

import struct
from typing import Final

import orjson

from fedsvc.domain.delivery import Attempt, Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.errors import QueueCorrupt

#: of each of several that are one entry, see `lua/logged.lua`: sequence, size; and how many they are at most,
#: since so many are settled in one script
HEAD: Final = struct.Struct(">QI")
MANY: Final = 128
#: of the parts of a packed outcome
_TYPES: Final = [*(str,) * 7, *(int,) * 4, str, int, int, str, str, list]
#: the archive's columns hold no larger ones
_LARGEST_SMALL: Final = 0x7FFF
_LARGEST: Final = 2**63 - 1
#: an enumeration that is called takes ten times as long
_PRIORITIES: Final = {int(priority): priority for priority in Priority}
_REASONS: Final = {int(reason): reason for reason in Reason}


def pack(delivery: Delivery) -> bytes:
    return orjson.dumps(
        [
            delivery.activity_id,
            delivery.activity_type,
            delivery.actor,
            delivery.inbox,
            delivery.host,
            delivery.origin,
            delivery.key_id,
            int(delivery.priority),
            delivery.attempts,
            int(delivery.reason or 0),
            delivery.status,
            delivery.snippet,
            delivery.not_before_ms,
            delivery.expire_ms,
            delivery.ordering_key,
            delivery.request_id,
            [(a.time_ms, a.latency_ms, a.status, int(a.reason)) for a in delivery.history],
        ]
    )


def unpack(payload: bytes, id: DeliveryId, state: DeliveryState, outcome: int) -> Delivery:
    """Raises QueueCorrupt if `payload` is not what `pack` makes."""
    try:
        told = orjson.loads(payload)
        # One that a column refuses would hold up the archive for good, so each part is looked at.
        # A newer version may have more of them.
        if not isinstance(told, list) or list(map(type, parts := told[: len(_TYPES)])) != _TYPES:
            raise ValueError("its parts are not those of an outcome")
        (
            activity_id, activity_type, actor, inbox, host, origin, key_id, priority, attempts, reason,
            status, snippet, not_before_ms, expire_ms, ordering_key, request_id, history,
        ) = parts  # fmt: skip
        if not 0 <= attempts <= _LARGEST_SMALL or not 0 <= status <= 0xFFFF:
            raise ValueError("attempts or status out of range")
        if not 0 <= not_before_ms <= _LARGEST or not 0 <= expire_ms <= _LARGEST:
            raise ValueError("a time is out of range")
        next_attempt_ms, completed_ms = 0, outcome // 1000
        # By position: by name it takes two and a half times as long.
        return Delivery(
            id, state, activity_id, activity_type, actor, inbox, host, origin, key_id, _PRIORITIES[priority],
            attempts, _REASONS[reason] if reason else None, status, snippet,
            not_before_ms, next_attempt_ms, expire_ms, completed_ms, outcome,
            ordering_key, request_id, tuple([_attempt(*each) for each in history]),
        )  # fmt: skip
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise QueueCorrupt(f"outcome of delivery {id}: {error}") from None


def _attempt(time_ms: int, latency_ms: int, status: int, reason: int) -> Attempt:
    """Raises ValueError, KeyError."""
    if not type(time_ms) is type(latency_ms) is type(status) is int:
        raise ValueError("an attempt's numbers are none")
    if not 0 <= time_ms <= _LARGEST or not 0 <= latency_ms <= _LARGEST or not 0 <= status <= _LARGEST:
        raise ValueError("an attempt's numbers are out of range")
    return Attempt(time_ms, latency_ms, status, _REASONS[reason])
