"""The worker's side of the queue: admit, settle, promote, reclaim, each a whole batch in one script."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, Final, NamedTuple

from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState, Priority
from fedsvc.domain.knock import Dialect
from fedsvc.domain.message import Message
from fedsvc.errors import QueueCorrupt
from fedsvc.queue import outcome
from fedsvc.queue.hosts import pack_terms
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.record import Finished, Record, unpack
from fedsvc.queue.script import Script
from fedsvc.queue.topology import Argument

#: see `lua/settle.lua`
_NUMBERS: Final = struct.Struct(">BBIQ")
_MORE: Final = struct.Struct(">BBBQQ")


#: one that a newer version has learnt is as good as none
_DIALECTS: Final = {b"%d" % dialect: dialect for dialect in Dialect}


@dataclass(slots=True)  # not frozen, as a record is not
class Admitted:
    """A delivery in flight with this worker."""

    id: DeliveryId
    #: number of the stream that its entry is in: 1 to 3 the ready streams, 4 for one out of a lane
    stream: int
    #: number of its entry there
    entry: int
    record: Record
    #: how often it was handed out; more than once means that a worker died with it
    times: int
    #: why the record cannot be used; empty when it can
    problem: str = ""
    #: what is remembered of how its host wants to be signed to
    dialect: Dialect = Dialect.UNKNOWN


class Signal(IntFlag):
    """What an attempt tells of its host: see `lua/hosts.lua`."""

    ANSWERED = 1
    FAILED = 2
    SLOWED = 4
    TOOK = 8
    INBOX_GONE = 16
    KEY_REJECTED = 32
    NO_NAME = 64


NO_SIGNAL: Final = Signal(0)
#: told of an attempt that the host took: nothing else has to be said of most deliveries
WELL: Final = Signal.ANSWERED | Signal.TOOK


@dataclass(slots=True)  # not frozen, as a record is not
class Settlement:
    """How a flight ended. RETRY needs `due_ms` and the new `record`, every other state an `outcome`,
    DEAD both. What the answer tells of the host is in `signal`."""

    admitted: Admitted
    state: DeliveryState
    #: whether the inbox was tried
    attempted: bool
    record: Record | None = None
    due_ms: int = 0
    outcome: Delivery | None = None
    signal: Signal = NO_SIGNAL
    latency_ms: int = 0
    #: milliseconds for which the host wants to be left alone
    pause_ms: int = 0
    #: how the host wants to be signed to, if that was learnt
    learnt: Dialect = Dialect.UNKNOWN


class Settled(NamedTuple):
    #: indexes of those that somebody else has settled
    passed_over: set[int]
    #: hosts have room for what waits in their lanes
    woken: bool
    #: hosts whose circuit has changed, and whether it is open now
    circuits: tuple[tuple[str, bool], ...] = ()


class Handed(NamedTuple):
    admitted: list[Admitted]
    #: there is more
    more: bool
    #: messages that came along, by number, so that nobody has to ask for them
    messages: dict[int, Message]


class Promoted(NamedTuple):
    promoted: int
    #: milliseconds since the epoch at which something is due next; None if nothing waits for a time
    next_due_ms: int | None
    #: there is work for admit
    work: bool
    #: milliseconds for which the oldest that could be taken now has waited, if that was asked for
    waited_ms: int


class Messages(IntEnum):
    """Which messages come along with deliveries."""

    NONE = 0
    ALL = 1
    #: those of urgent deliveries, which nobody else needs as a rule
    URGENT = 2


class Shares(NamedTuple):
    """Of how many deliveries in all, how many of each priority at least (if they wait)."""

    limit: int
    urgent: int
    normal: int
    bulk: int


class Clock:
    """Redis's clock, followed between answers by our own."""

    def __init__(self) -> None:
        #: whether Redis has told it; until then it is our own, which may be wrong by days
        self.known = False
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000

    def set(self, now_ms: int) -> None:
        self.known = True
        self._offset_ms = now_ms - time.monotonic() * 1000

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._offset_ms + time.monotonic() * 1000)


class Consumer:
    """One worker process as the queue knows it. `name` is its own and never used again."""

    #: how many retries go back to the ready streams in one script
    PROMOTE: Final = 500

    def __init__(self, link: Link, keys: Keys, settings: Settings, name: str) -> None:
        self.name = name
        self.clock = Clock()
        self._link = link
        self._keys = keys
        self._lease_ms = settings.lease_ms
        self._terms = pack_terms(settings)
        self._admit = Script("admit")
        self._settle = Script("settle")
        self._promote = Script("promote")
        self._reclaim = Script("reclaim")
        self._leave = Script("leave")

    async def admit(
        self, partition: int, shares: Shares, *, only_urgent: bool = False, messages: Messages = Messages.NONE
    ) -> Handed:
        """Take deliveries that their hosts can take now; the others are parked. Also renews the lease.
        `messages`: with what they send, which the worker would ask for next.

        After QueueUnavailable some may have been handed out in an answer that was lost: `recover` them.
        """
        await self.learn_the_time(partition)
        args: list[Argument] = [
            self._terms, self.name, self._lease_ms, *shares, int(only_urgent), int(messages)
        ]  # fmt: skip
        more, packed, *answer = await self._run(self._admit, partition, args)
        found = {}
        flat = iter(packed)
        for number, body, fields in zip(flat, flat, flat, strict=True):
            with suppress(ValueError):  # who asks for it by itself is told what is wrong
                found[int(number)] = Message.unpack(body, fields)
        return Handed(list(self._admitted(partition, answer)), bool(more), found)

    async def recover(self, partition: int, limit: int, *, for_ms: int = 0) -> list[Admitted]:
        """Everything that is in flight with this worker, known to it or not, and has been `for_ms`
        milliseconds."""
        await self.learn_the_time(partition)
        args: list[Argument] = [self.name, self._lease_ms, limit, self.name, for_ms]
        return list(self._admitted(partition, await self._run(self._reclaim, partition, args)))

    async def reclaim(self, partition: int, limit: int) -> list[Admitted]:
        """Take over what was in flight with workers whose lease has ended; also renews the lease."""
        await self.learn_the_time(partition)
        args: list[Argument] = [self.name, self._lease_ms, limit, "", 0]
        return list(self._admitted(partition, await self._run(self._reclaim, partition, args)))

    async def keep(self, partition: int) -> None:
        """Renew the lease, and nothing else."""
        await self._run(self._reclaim, partition, [self.name, self._lease_ms, 0, self.name, 0])

    async def promote(self, partition: int, *, look: bool = False) -> Promoted:
        """Move deliveries that are due to the ready streams, and end those whose time is over. `look`: also
        find out how long the oldest has waited for a worker."""
        args = [self.PROMOTE, int(look)]
        count, due, now, work, waited = await self._run(self._promote, partition, args)
        self.clock.set(int(now))
        next_due = int(float(due))
        return Promoted(int(count), None if next_due < 0 else next_due, bool(work), int(waited))

    async def settle(self, partition: int, settlements: Sequence[Settlement]) -> Settled:
        """End the flight of some deliveries.

        Repeating it after QueueUnavailable is safe: what was done is passed over.
        """
        heads, delivered, numbers, more = [], [], [], []
        args: list[Argument] = [self._terms, b"", b"", b"", len(settlements)]
        for s in settlements:
            admitted = s.admitted
            packed = outcome.pack(s.outcome) if s.outcome is not None else b""
            delivered_now = s.state is DeliveryState.DELIVERED
            if delivered_now:
                heads.append(outcome.HEAD.pack(admitted.id.sequence, len(packed)))
                delivered.append(packed)
            else:
                more.append(s.record.pack(admitted.id.accepted_ms) if s.record is not None else b"")
                more.append(packed)
            well = delivered_now and s.attempted and s.signal == WELL and not (s.learnt or s.pause_ms)
            latency_ms = min(max(s.latency_ms, 0), 0xFFFFFFFF)
            numbers.append(_NUMBERS.pack(0 if well else s.state, admitted.stream, latency_ms, admitted.entry))
            if not well:
                numbers.append(_MORE.pack(s.attempted, s.signal, s.learnt, s.pause_ms, s.due_ms))
            args += admitted.entry, admitted.id.sequence
        args[1:4] = b"".join(heads), b"".join(delivered), b"".join(numbers)
        args += more
        woken, *passed_over = await self._run(self._settle, partition, args)
        told = passed_over.pop() if passed_over and isinstance(passed_over[-1], list) else []
        circuits = tuple(
            (host.decode(), what == b"opened") for host, what in zip(told[::2], told[1::2], strict=True)
        )
        return Settled({int(index) for index in passed_over}, bool(woken), circuits)

    async def leave(self, partition: int) -> int:
        """Give up the lease. Returns how many deliveries are left to other workers (1 stands for some)."""
        return int(await self._run(self._leave, partition, [self.name]))

    async def message(self, partition: int, number: int) -> Message | None:
        """None if Redis does not hold it. Raises QueueCorrupt if it is no message."""
        key = self._keys.partition(partition).message(number)
        body, packed = await self._link.call("HMGET", key, "b", "m")
        if body is None or packed is None:
            return None
        try:
            return Message.unpack(body, packed)
        except ValueError as error:
            raise QueueCorrupt(f"message {partition}-{number}: {error}") from None

    async def alive(self) -> set[str]:
        """Names of workers whose lease has not ended; ours is one once we have admitted or reclaimed."""
        # Everybody renews its lease in every partition: one tells all.
        key = self._keys.partition(0).consumers
        names = await self._link.call("ZRANGEBYSCORE", key, self.clock.now_ms(), "+inf")
        return {name.decode(errors="replace") for name in names}

    async def learn_the_time(self, partition: int) -> None:
        """Before anything is handed out, run or forgotten: by a clock of ours that is wrong, its time might
        be over, or there. Raises QueueUnavailable."""
        if not self.clock.known:
            shift = await self._link.call("GET", self._keys.partition(partition).clock_shift)
            self.clock.set(await self._link.now_ms() + int(shift or 0))

    async def _run(self, script: Script, partition: int, args: Sequence[Argument]) -> Any:
        return await self._link.run(script, self._keys.partition(partition).prefix, args)

    @staticmethod
    def _admitted(partition: int, answer: Sequence[Any]) -> Iterator[Admitted]:
        for item in answer:
            stream, entry, sequence, times, dialect, packed = item.split(b" ", 5)
            id, number = DeliveryId(partition, int(sequence)), int(entry.partition(b"-")[0])
            try:
                record = unpack(packed, id)
                if isinstance(record, Finished):
                    raise QueueCorrupt(f"delivery {id} is finished")
                told = _DIALECTS.get(dialect, Dialect.UNKNOWN)
                yield Admitted(id, int(stream), number, record, int(times), dialect=told)
            except QueueCorrupt as error:
                priority = Priority(min(int(stream), Priority.BULK))
                broken = Record(DeliveryState.READY, 0, priority, 0, 0, 0, 0, 0, 0, "")
                yield Admitted(id, int(stream), number, broken, int(times), str(error))
