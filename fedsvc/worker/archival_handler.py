"""Copies outcomes from the queue to SQL, in order and in batches.

A worker archives its own partitions (see affinity.py), and another's when nobody else does, under a lease in
Redis; two at once would only write the same rows twice. Nothing leaves Redis before SQL has committed it, and
SQL being away holds no delivery up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, assert_never

import structlog

from fedsvc.archive.archive import Archive
from fedsvc.archive.archived_log import ArchivedLog
from fedsvc.archive.transaction import DataRefused
from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryState, Reason
from fedsvc.domain.events import EventType, HostEvent
from fedsvc.errors import ArchiveUnavailable, QueueUnavailable
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.beats import Beats
from fedsvc.worker.metrics import BY_ITSELF, Metrics
from fedsvc.worker.rounds import Rounds

log = structlog.get_logger(__name__)

#: partition and number of an outcome that SQL can never hold, and why
_Refused = dict[tuple[int, int], str]


@dataclass(slots=True)
class _Batch:
    """What was read of one partition."""

    partition: int
    after: int  # the number past which it was read
    last: int  # of the last entry
    count: int  # of entries, those that cannot be read too
    entries: list[Delivery | HostEvent]


class ArchivalHandler:
    """Holds MAX_TRANSACTION outcomes at most (or one of each partition, if there are more), however far it
    is behind."""

    #: outcomes of all partitions in one transaction: what it touches of the indexes is written once
    MAX_TRANSACTION: Final = 4000
    #: outcomes that are read at a time, since nothing else happens while they are taken apart
    AT_A_TIME: Final = 1000
    #: seconds between rounds when there is nothing to do, and while SQL or Redis is away
    PAUSE: Final = 0.5
    AWAY: Final = 2.0
    #: seconds without an outcome after which SQL is asked whether it is there, so that readiness knows it
    #: before there is something to archive
    PING_EVERY: Final = 5.0
    #: seconds between two looks whether others' partitions are archived by nobody
    WHOLE: Final = 10.0

    def __init__(
        self, settings: Settings, outcomes: OutcomeLog, archive: Archive, beats: Beats, affinity: Affinity
    ) -> None:
        self._outcomes = outcomes
        self._archive = archive
        self._log = ArchivedLog(archive.engine)
        self._beats = beats
        self._affinity = affinity
        self._rounds = Rounds(affinity, self.WHOLE)
        #: partitions whose lease is ours; of these, others' that we stay with until all of them is archived
        self._led: frozenset[int] = frozenset()
        self._adopted: frozenset[int] = frozenset()
        #: of each partition, the number up to which was told: what Redis could not be told is read again
        self._told: dict[int, int] = {}
        self._metrics = Metrics()
        self._tell = log.info if settings.log_deliveries else log.debug
        self._heard = -self.PING_EVERY

    async def run(self) -> None:
        """Archive until cancelled. SQL or Redis being away only delays it."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                more = await self.round()
                if not more and loop.time() - self._heard >= self.PING_EVERY:
                    await self._archive.ping()
                    self._heard = loop.time()
                pause = 0.0 if more else self.PAUSE
                self._beats.beat("archive")
            except (ArchiveUnavailable, QueueUnavailable) as error:
                self._beats.fail("archive", str(error))
                pause = self.AWAY
            await asyncio.sleep(pause)

    async def leave(self) -> None:
        """Leave the rest to others, at once; after `run` has ended. Raises QueueUnavailable."""
        await asyncio.gather(*(self._outcomes.resign(p, self._affinity.name) for p in self._affinity.all))

    async def round(self) -> bool:
        """Archive one batch of each partition that is ours. Returns whether there is more.

        Raises ArchiveUnavailable, and QueueUnavailable once it has archived what the rest of Redis has.
        """
        wanted = sorted(self._rounds.next() | self._adopted)
        leads, resigned = await asyncio.gather(
            asyncio.gather(
                *(self._outcomes.lead(p, self._affinity.name) for p in wanted), return_exceptions=True
            ),
            self._resign(self._led.difference(wanted)),
        )
        ours = [p for p, leading in zip(wanted, leads, strict=True) if leading is True]
        self._led = frozenset(ours)
        read, behind = await self._read_all(ours)
        self._adopted = behind - self._affinity.own
        batches = [batch for batch in read if isinstance(batch, _Batch)]
        entries = [entry for batch in batches for entry in batch.entries]
        outcomes = [entry for entry in entries if isinstance(entry, Delivery)]
        happened = [entry for entry in entries if isinstance(entry, HostEvent)]
        refused = await self._store(outcomes) if outcomes else {}
        if happened:
            await self._log.record(happened)
        if entries:
            self._heard = asyncio.get_running_loop().time()
        committed = await asyncio.gather(
            *(self._outcomes.commit(b.partition, b.after, b.last, b.count) for b in batches if b.count),
            return_exceptions=True,
        )
        for batch in batches:
            self._tell_of(batch, refused, whole=batch.partition not in behind)
        for problem in (*leads, *resigned, *read, *committed):
            if isinstance(problem, BaseException):
                raise problem
        return bool(behind)

    async def _resign(self, partitions: frozenset[int]) -> list[bool | BaseException]:
        """What was ours is another's now, who need not wait for our lease to end."""
        return await asyncio.gather(
            *(self._outcomes.resign(p, self._affinity.name) for p in partitions), return_exceptions=True
        )

    def _tell_of(self, batch: _Batch, refused: _Refused, whole: bool) -> None:
        """What nobody else has told, nor this one before: what happened in Redis, without a worker's doing,
        and what SQL has refused. `whole`: the log has no more than this."""
        told = self._told.get(batch.partition, 0)
        if whole and batch.last < told:
            told = 0  # a Redis that came back empty, with its clock set back
        for entry in batch.entries:
            if isinstance(entry, HostEvent):
                if entry.number > told:
                    _tell_event(entry)
                continue
            if entry.outcome <= told:
                continue
            if error := refused.get((batch.partition, entry.outcome)):
                log.error(
                    "outcome_never_archived", delivery=str(entry.id), state=entry.state.name, error=error
                )
            if entry.reason in BY_ITSELF and entry.state.is_terminal:
                self._metrics.ended(entry)
                _tell_end(entry, self._tell)
        self._told[batch.partition] = max(told, batch.last)

    async def _read_all(self, partitions: list[int]) -> tuple[list[_Batch | BaseException], frozenset[int]]:
        """A batch of each partition, or what was the matter with it; and those that have more."""
        if not partitions:
            return [], frozenset()
        share = max(1, self.AT_A_TIME // len(partitions))
        read = await asyncio.gather(*(self._read(p, share) for p in partitions), return_exceptions=True)
        batches = [batch for batch in read if isinstance(batch, _Batch)]
        full = [batch for batch in batches if batch.count >= share]
        # What the others leave goes to those that have more: one that is far behind waits for no idle one.
        while full:
            room = min(self.AT_A_TIME, self.MAX_TRANSACTION - sum(batch.count for batch in batches))
            share = room // len(full)
            if share <= 0:
                break
            gave = await asyncio.gather(
                *(self._read_on(batch, share) for batch in full), return_exceptions=True
            )
            if problems := [problem for problem in gave if isinstance(problem, BaseException)]:
                return read + problems, frozenset(batch.partition for batch in full)
            full = [
                b for b, count in zip(full, gave, strict=True) if isinstance(count, int) and count >= share
            ]
        return read, frozenset(batch.partition for batch in full)

    async def _read(self, partition: int, limit: int) -> _Batch:
        """Raises QueueUnavailable."""
        after = await self._outcomes.position(partition)
        entries, last, count = await self._outcomes.read_all(partition, after, limit)
        return _Batch(partition, after, last, count, entries)

    async def _read_on(self, batch: _Batch, limit: int) -> int:
        """How many more that were. Raises QueueUnavailable."""
        entries, batch.last, count = await self._outcomes.read_all(batch.partition, batch.last, limit)
        batch.count += count
        batch.entries += entries
        return count

    async def _store(self, outcomes: list[Delivery]) -> _Refused:
        """All but those that SQL can never hold: they must not block the ones behind them.

        Raises ArchiveUnavailable, also if SQL would not hold any outcome at all."""
        refused: _Refused = {}
        try:
            await self._archive.record(outcomes)
            return refused
        except DataRefused:
            await self._archive.takes_rows()
        # Halves of halves, down to the one that is refused; the others go in together.
        waiting = [outcomes]
        while waiting:
            some = waiting.pop()
            try:
                await self._archive.record(some)
            except DataRefused as error:
                if len(some) > 1:
                    middle = len(some) // 2
                    waiting += [some[middle:], some[:middle]]
                else:
                    refused[some[0].id.partition, some[0].outcome] = str(error)
        return refused


def _tell_event(event: HostEvent) -> None:
    match event.type:
        case EventType.HOST_DOWN:
            log.warning("host_down", host=event.host)
        case EventType.HOST_UP:
            log.info("host_up", host=event.host)
        case EventType.INBOX_GONE:
            log.info("inbox_gone", host=event.host, inbox=event.detail)
        case EventType.KEY_REJECTED:
            log.warning("key_rejected", host=event.host, key_id=event.detail)
        case _:
            assert_never(event.type)


def _tell_end(ended: Delivery, tell: Callable[..., Any]) -> None:
    fields = {
        "delivery": str(ended.id), "activity": ended.activity_id, "host": ended.host,
        "request_id": ended.request_id, "attempts": ended.attempts,
    }  # fmt: skip
    match ended.state:
        case DeliveryState.DEAD:
            log.warning("dead_letter", reason=Reason.MAX_AGE.name, status=ended.status, **fields)
        case DeliveryState.EXPIRED:
            tell("expired", **fields)
        case DeliveryState.CANCELLED:
            tell("cancelled_delivery", **fields)
        case DeliveryState.SUPERSEDED:
            tell("superseded", **fields)
        case _:  # replayed since
            pass
