"""What happened to a host, an inbox or a key, beside the outcomes of single deliveries."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class EventType(IntEnum):
    """Numbers are those of the contract and of the archive: never renumber."""

    INBOX_GONE = 2
    HOST_DOWN = 3
    HOST_UP = 4
    KEY_REJECTED = 5


@dataclass(frozen=True, slots=True)
class HostEvent:
    type: EventType
    partition: int
    #: its place in the partition's log, microseconds since the epoch
    number: int
    host: str
    #: the inbox of INBOX_GONE, the key id of KEY_REJECTED
    detail: str = ""
