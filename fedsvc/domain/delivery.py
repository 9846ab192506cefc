"""What a delivery is: its identity, its states, and what is told of an attempt.

A delivery is one activity to one inbox. `DeliveryId` names the partition that holds it, so that any
of its state is found without an index. Numbers given to enum members are stored in Redis and in SQL:
add new ones, never change one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Self

_ID = re.compile(r"(0|[1-9][0-9]{0,3})-([1-9][0-9]{0,15})")


class DeliveryId(NamedTuple):
    """`<partition>-<sequence>`, as text. The sequence is the acceptance time in microseconds
    (Redis's clock), made unique and increasing within the partition."""

    partition: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError if `text` is not a delivery id."""
        match = _ID.fullmatch(text)
        if match is None:
            raise ValueError("not a delivery id; expected <partition>-<sequence>")
        return cls(int(match[1]), int(match[2]))

    @property
    def accepted_ms(self) -> int:
        """Milliseconds since the epoch at which the delivery was accepted."""
        return self.sequence // 1000


class Priority(IntEnum):
    """Which of the three ready streams a delivery waits in."""

    URGENT = 1
    NORMAL = 2
    BULK = 3

    @property
    def stream(self) -> str:
        """The last part of the ready stream's key."""
        return self.name.lower()


class DeliveryState(IntEnum):
    """Where a delivery is: pending up to SCHEDULED, ended from DELIVERED on."""

    READY = 1
    IN_FLIGHT = 2  # never stored: a READY delivery that is in the group's pending list
    PARKED = 3
    RETRY = 4
    SCHEDULED = 5
    DELIVERED = 6
    DEAD = 7
    CANCELLED = 8
    SUPERSEDED = 9
    EXPIRED = 10
    PURGED = 11

    @property
    def is_terminal(self) -> bool:
        """True when an outcome was recorded (a dead letter may still be replayed)."""
        return self >= DeliveryState.DELIVERED


class Reason(IntEnum):
    """Why an attempt, or a delivery, ended as it did."""

    OK = 1
    SUSPECT = 2  # a 2xx with a page instead of an ActivityPub answer, as parked domains give
    REDIRECTED = 3
    BAD_REQUEST = 4  # 400, and 4xx without a reason of their own
    UNAUTHORIZED = 5
    FORBIDDEN = 6
    NOT_FOUND = 7
    GONE = 8
    METHOD_NOT_ALLOWED = 9
    NOT_ACCEPTABLE = 10
    TOO_LARGE = 11
    UNSUPPORTED_MEDIA = 12
    UNPROCESSABLE = 13
    NOT_IMPLEMENTED = 14
    REQUEST_TIMEOUT = 15  # the remote said so: 408, 425
    RATE_LIMITED = 16
    SERVER_ERROR = 17
    UNAVAILABLE = 18
    CONNECT_FAILED = 19
    CONNECT_TIMEOUT = 20
    TLS_FAILED = 21
    DNS_FAILED = 22
    DNS_NOT_FOUND = 23
    TIMEOUT = 24  # our deadline for the whole exchange
    CONNECTION_RESET = 25
    PROTOCOL_ERROR = 26  # the answer is not HTTP, or its head is over the limit
    ADDRESS_REFUSED = 27
    TOO_MANY_REDIRECTS = 28
    KEY_UNAVAILABLE = 29
    BODY_MISSING = 30
    MALFORMED_ENTRY = 31
    HANDLER_ERROR = 32
    RETRIES_EXHAUSTED = 33
    MAX_AGE = 34
    EXPIRED = 35
    CANCELLED = 36
    SUPERSEDED = 37
    PURGED = 38
    WORKER_ERROR = 39
    OTHER = 40  # one that a newer version has written and this one does not know

    @classmethod
    def _missing_(cls, value: object) -> Reason | None:
        """Of a neighbouring version's data: a number that it has learnt is no reason to refuse the rest."""
        return cls.OTHER if isinstance(value, int) and cls.OTHER < value <= 0xFF else None


@dataclass(slots=True)  # not frozen, nor is a delivery: each field of a frozen one costs four times as much
class Attempt:
    """One try to deliver. Kept with the delivery, at most `MAX_HISTORY` of them, oldest first."""

    time_ms: int  # start, milliseconds since the epoch
    latency_ms: int
    status: int  # HTTP status, 0 when there was no answer
    reason: Reason


MAX_HISTORY = 16
SNIPPET_BYTES = 1024


@dataclass(slots=True)
class Delivery:
    """A delivery as it is shown: the same whether the queue or the archive answers.

    All times are milliseconds since the epoch; 0 stands for "none".
    """

    id: DeliveryId
    state: DeliveryState
    activity_id: str
    activity_type: str
    actor: str
    inbox: str
    host: str
    origin: str
    key_id: str
    priority: Priority
    attempts: int = 0
    reason: Reason | None = None
    status: int = 0  # last HTTP status, 0 when there was no answer
    snippet: str = ""  # of the last answer: `classify.words`; at most SNIPPET_BYTES
    not_before_ms: int = 0
    next_attempt_ms: int = 0
    expire_ms: int = 0
    completed_ms: int = 0
    #: names the outcome within the partition and orders it among the outcomes of one delivery
    #: (a dead letter that is replayed gets another); 0 while pending
    outcome: int = 0
    ordering_key: str = ""
    request_id: str = ""
    history: tuple[Attempt, ...] = ()

    @property
    def accepted_ms(self) -> int:
        return self.id.accepted_ms
