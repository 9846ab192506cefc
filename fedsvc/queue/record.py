"""The packed record of a delivery that is not finished, as the hash `deliveries` holds it.

Big-endian: state u8, flags u8, priority u8, type code u8, attempts u8, tries u8 (attempts that the retry
policy counts), deadline u32 (seconds), message u64, place u64, inbox length u16, where in the inbox
its host begins u8 (0-based), length of that u8, inbox, then for each attempt: start u32 (ms after
acceptance), latency u16 (ms, capped), status u16, reason u8. `lua/prelude.lua` reads and writes the same
layout.

`place` is the number of the entry by which the delivery stands in a ready stream or among the dead letters;
of a parked one see `lua/prelude.lua`. A finished delivery keeps only state u8 and the number of its outcome
u64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Self

from fedsvc.domain.delivery import (
    MAX_HISTORY,
    Attempt,
    Delivery,
    DeliveryId,
    DeliveryState,
    Priority,
    Reason,
)
from fedsvc.domain.inbox import host_of, host_span
from fedsvc.domain.message import Message
from fedsvc.errors import QueueCorrupt

HEADER: Final = struct.Struct(">BBBBBBIQQHBB")
_ATTEMPT: Final = struct.Struct(">IHHB")
_FINISHED: Final = struct.Struct(">BQ")
FLAG_SHARED_INBOX: Final = 1
#: the deadline is the caller's expiry, not the age limit
FLAG_EXPIRES: Final = 2
#: a newer one with the same supersede key replaces it
FLAG_REPLACED: Final = 8
#: nobody wants it any more; a newer one replaces it: it was in flight or in SQL when that was said
FLAG_CANCEL: Final = 16
FLAG_SUPERSEDE: Final = 32
#: it is superseded by another key than that whose order it keeps
FLAG_APART: Final = 64
#: `place` of a parked delivery that is in SQL: its record has the origin instead of the inbox
_SPILLED: Final = 2
#: an enumeration that is called takes ten times as long
_STATES: Final = {int(state): state for state in DeliveryState}
_PRIORITIES: Final = {int(priority): priority for priority in Priority}


class Finished(NamedTuple):
    """What is left of a finished delivery: where its outcome is found."""

    state: DeliveryState
    outcome: int


@dataclass(slots=True)  # to be frozen doubles what it costs to make one; nobody changes it
class Record:
    state: DeliveryState
    flags: int
    priority: Priority
    type_code: int
    attempts: int
    tries: int  # attempts that the retry policy counts: those while the host was known to be down are not
    deadline_s: int  # seconds since the epoch: past it the delivery is not tried any more
    message: int
    place: int
    inbox: str
    history: tuple[Attempt, ...] = ()

    @property
    def shared_inbox(self) -> bool:
        return bool(self.flags & FLAG_SHARED_INBOX)

    @property
    def expires(self) -> bool:
        """Whether the deadline is the caller's expiry."""
        return bool(self.flags & FLAG_EXPIRES)

    @property
    def expire_ms(self) -> int:
        """The caller's expiry, milliseconds since the epoch; 0 for none."""
        return self.deadline_s * 1000 if self.expires else 0

    @property
    def spilled(self) -> bool:
        """Whether all else of it is in SQL; `inbox` is its origin then."""
        return self.state is DeliveryState.PARKED and self.place == _SPILLED

    def tried(self, attempt: Attempt, state: DeliveryState) -> Self:
        """The record after one more attempt; the oldest are forgotten past MAX_HISTORY.

        If it was a probe of a host that is still down, `settle.lua` takes the try back."""
        return replace(
            self,
            state=state,
            attempts=min(self.attempts + 1, 255),
            tries=min(self.tries + 1, 255),
            history=(*self.history, attempt)[-MAX_HISTORY:],
        )

    def pack(self, accepted_ms: int) -> bytes:
        inbox = self.inbox.encode()
        head = HEADER.pack(
            self.state,
            self.flags,
            self.priority,
            self.type_code,
            self.attempts,
            self.tries,
            self.deadline_s,
            self.message,
            self.place,
            len(inbox),
            *host_span(self.inbox),
        )
        tail = b"".join(
            _ATTEMPT.pack(
                min(max(a.time_ms - accepted_ms, 0), 0xFFFFFFFF),
                min(max(a.latency_ms, 0), 0xFFFF),
                a.status if 0 <= a.status <= 0xFFFF else 0,
                a.reason,
            )
            for a in self.history
        )
        return head + inbox + tail


def shown(
    id: DeliveryId,
    record: Record,
    message: Message,
    state: DeliveryState,
    *,
    attempt: Attempt | None = None,
    reason: Reason | None = None,
    status: int = 0,
    snippet: str = "",
) -> Delivery:
    """The delivery as a record and its message tell of it, with one more `attempt` if there was one; the rest
    is for the caller to add."""
    attempts, history = record.attempts, record.history
    if attempt is not None:
        attempts, history = min(attempts + 1, 255), (*history, attempt)[-MAX_HISTORY:]
    not_before_ms = next_attempt_ms = completed_ms = outcome = 0
    # By position: by name it takes two and a half times as long.
    return Delivery(
        id, state,
        message.activity_id, message.activity_type, message.actor,
        record.inbox, host_of(record.inbox), message.origin, message.key_id,
        record.priority, attempts, reason, status, snippet,
        not_before_ms, next_attempt_ms, record.expire_ms, completed_ms, outcome,
        message.ordering_key, message.request_id, history,
    )  # fmt: skip


def inbox_in(packed: bytes) -> str:
    """Of a record that is known to be one."""
    return packed[HEADER.size : HEADER.size + HEADER.unpack_from(packed)[-3]].decode()


def unpack(packed: bytes, id: DeliveryId) -> Record | Finished:
    """Raises QueueCorrupt if `packed` is neither a record nor what is left of one."""
    try:
        if len(packed) == _FINISHED.size:
            state, outcome = _FINISHED.unpack(packed)
            return Finished(DeliveryState(state), outcome)
        (
            state, flags, priority, type_code, attempts, tries, deadline, message, place, length, _, _,
        ) = HEADER.unpack_from(packed)  # fmt: skip
        start = HEADER.size + length
        inbox = packed[HEADER.size : start].decode()
        if len(inbox) != length:
            raise ValueError("inbox is cut short")
        history: tuple[Attempt, ...] = ()
        if len(packed) > start and place != _SPILLED:
            accepted_ms = id.accepted_ms
            history = tuple(
                Attempt(accepted_ms + offset, latency, status, Reason(reason))
                for offset, latency, status, reason in _ATTEMPT.iter_unpack(packed[start:])
            )
        return Record(
            _STATES[state],
            flags,
            _PRIORITIES[priority],
            type_code,
            attempts,
            tries,
            deadline,
            message,
            place,
            inbox,
            history,
        )
    except (struct.error, ValueError, KeyError) as error:
        raise QueueCorrupt(f"delivery {id}: {error}") from None
