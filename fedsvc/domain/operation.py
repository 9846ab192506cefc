"""Something that an operator asked for and that takes a while: a replay or a purge of dead letters."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedsvc.domain.dead_letters import EVERYTHING, DeadLetterFilter
from fedsvc.domain.delivery import DeliveryId


class OperationKind(StrEnum):
    REPLAY = "replay"
    PURGE = "purge"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done, as it was asked for."""

    kind: OperationKind
    #: these; or, if there are none, those that fit
    ids: tuple[DeliveryId, ...] = ()
    chosen: DeadLetterFilter = EVERYTHING
    #: at most so many; 0 for all
    limit: int = 0
    #: count only
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is, and where to go on."""

    #: whether all have been counted
    counted: bool = False
    #: the partition that is looked through, and the last entry there that was
    partition: int = 0
    after: int = 0
    #: how many it is about; while they are being counted, so far
    total: int = 0
    #: asked for by id, and no dead letters
    failed: int = 0
    #: there are more than the limit
    limit_reached: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    #: 20 hexadecimal digits
    id: str
    order: Order
    #: name of the caller who asked for it
    principal: str
    #: milliseconds since the epoch
    created_ms: int
    #: number of the newest dead letter of each partition as it was asked for: later ones are not meant
    bounds: tuple[int, ...]
    progress: Progress = field(default_factory=Progress)
    #: how many were replayed or purged so far
    completed: int = 0
    #: milliseconds since the epoch, 0 while it goes on
    ended_ms: int = 0
    #: why it ended before it was done; empty if it did not
    error: str = ""
