"""The queue on a real server, with time that tests move, and what tests do with it most."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from fedsvc.config import Settings
from fedsvc.domain.delivery import Attempt, Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.domain.inbox import Inbox, host_of, partition_of
from fedsvc.domain.knock import Dialect
from fedsvc.domain.message import Message
from fedsvc.domain.relations import Relation, Rule
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.consumer import NO_SIGNAL, Admitted, Consumer, Settled, Settlement, Shares, Signal
from fedsvc.queue.dead_letters import DeadLetters
from fedsvc.queue.hosts import Circuit, Hosts
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.queue.producer import FannedOut, Place, Producer, Queued, Terms
from fedsvc.queue.reader import Reader
from fedsvc.queue.stats import TERMINAL, QueueStats, StatsReader

PARTITIONS = 4
SECOND_MS = 1000
HOUR_MS = 3600 * SECOND_MS

#: what activities are about, and how they stand to each other
OBJECT = "https://me.example/note/1"
ORDERED = Relation("key")
CREATE = Relation(OBJECT, OBJECT)
UPDATE = Relation(OBJECT, OBJECT, Rule.OLDER_UPDATES)
DELETE = Relation(OBJECT, OBJECT, Rule.OBJECT)

#: of hosts, as users get them
USUAL_LIMITS = {
    "FEDSVC_HOST_CONCURRENCY": "8",
    "FEDSVC_HOST_START": "1",
    "FEDSVC_HOST_RATE": "1000",
    "FEDSVC_HOST_BURST": "2000",
}


def ids(deliveries: Sequence[Admitted | Queued]) -> list[DeliveryId]:
    return [d.id for d in deliveries]


class Queue:
    """Inboxes are numbered: number n is at host hN.example. Unless said otherwise, all is to number 0."""

    BULK = Priority.BULK

    def __init__(self, link: Link, namespace: str, **environment: str) -> None:
        """Hosts take all there is, unless settings in `environment` say otherwise."""
        self.settings = Settings.from_environment(
            {
                "FEDSVC_NAMESPACE": namespace,
                "FEDSVC_PARTITIONS": str(PARTITIONS),
                "FEDSVC_HOST_CONCURRENCY": "1000",
                "FEDSVC_HOST_START": "1000",
                "FEDSVC_HOST_RATE": "0",
                **environment,
            }
        )
        self.link = link
        self.keys = Keys(namespace)
        self.producer = Producer(link, self.keys, self.settings)
        self.dead = DeadLetters(link, self.keys, self.settings)
        self.reader = Reader(link, self.keys, self.settings)
        self.outcomes = OutcomeLog(link, self.keys, self.settings)
        self.stats = StatsReader(link, self.keys, self.settings)
        self.hosts = Hosts(link, self.keys, self.settings)
        self._consumers: dict[str, Consumer] = {}
        self._shift_ms = 0

    def consumer(self, worker: str) -> Consumer:
        if worker not in self._consumers:
            self._consumers[worker] = Consumer(self.link, self.keys, self.settings, worker)
        return self._consumers[worker]

    def partition_of(self, inbox: int) -> int:
        return partition_of(f"h{inbox}.example", PARTITIONS)

    def place(self, inbox: int, path: str = "/inbox") -> Place:
        return self.producer.place(Inbox(f"https://h{inbox}.example{path}", f"h{inbox}.example"))

    def message(self, activity: str, kind: str = "Like", origin: str = "me.example") -> Message:
        body = f'{{"id":"https://me.example/{activity}"}}'.encode()
        return Message(
            body, f"https://me.example/{activity}", kind, "https://me.example/u/a", f"https://{origin}/u/a#k",
            "f" * 32, origin, digest=Message.digest_of(body),
        )  # fmt: skip

    async def enqueue(
        self,
        activity: str,
        *,
        inbox: int = 0,
        path: str = "/inbox",
        kind: str = "Like",
        priority: Priority = Priority.URGENT,
        origin: str = "me.example",
        **terms: Any,
    ) -> Queued:
        message, place = self.message(activity, kind, origin), self.place(inbox, path)
        return await self.producer.enqueue(message, place, Terms(priority, **terms))

    async def fan_out(
        self, activity: str, inboxes: Iterable[int], *, origin: str = "me.example", **terms: Any
    ) -> FannedOut:
        message, places = self.message(activity, origin=origin), [self.place(n) for n in inboxes]
        return await self.producer.fan_out(message, places, Terms(Priority.BULK, **terms))

    async def get(self, id: DeliveryId) -> Delivery:
        delivery = await self.reader.get(id)
        assert delivery is not None
        return delivery

    async def admit(self, limit: int, worker: str = "a", inbox: int = 0) -> list[Admitted]:
        shares = Shares(limit, limit, 0, 0)
        return (await self.consumer(worker).admit(self.partition_of(inbox), shares)).admitted

    async def admit_everywhere(self, limit: int = 1000, worker: str = "a") -> list[Admitted]:
        answers = await asyncio.gather(
            *(self.consumer(worker).admit(p, Shares(limit, limit, 0, 0)) for p in range(PARTITIONS))
        )
        return [admitted for answer in answers for admitted in answer.admitted]

    async def settlement(
        self,
        admitted: Admitted,
        state: DeliveryState,
        reason: Reason = Reason.OK,
        *,
        wait_ms: int = 0,
        worker: str = "a",
        signal: Signal = NO_SIGNAL,
        latency_ms: int = 5,
        pause_ms: int = 0,
        learnt: Dialect = Dialect.UNKNOWN,
    ) -> Settlement:
        now_ms = await self.now_ms()
        attempt = Attempt(now_ms, 5, 200, reason)
        record = admitted.record.tried(attempt, state)
        stored = await self.consumer(worker).message(admitted.id.partition, record.message)
        message = stored or self.message("1")  # somebody else has ended it
        outcome = Delivery(
            admitted.id, state, message.activity_id, "Like", message.actor, record.inbox,
            host_of(record.inbox), message.origin, message.key_id, record.priority, record.attempts,
            reason, 200,
            history=record.history,
        )  # fmt: skip
        return Settlement(
            admitted, state, True, record, now_ms + wait_ms, outcome, signal, latency_ms, pause_ms,
            learnt,
        )  # fmt: skip

    async def settle(
        self,
        admitted: Admitted,
        state: DeliveryState,
        reason: Reason = Reason.OK,
        *,
        worker: str = "a",
        **more: Any,
    ) -> Settled:
        """`more`: as for `settlement`."""
        settlement = await self.settlement(admitted, state, reason, worker=worker, **more)
        return await self.consumer(worker).settle(admitted.id.partition, [settlement])

    async def deliver(self, admitted: Admitted, *, latency_ms: int = 5) -> None:
        """Its inbox takes it."""
        signal = Signal.ANSWERED | Signal.TOOK
        await self.settle(admitted, DeliveryState.DELIVERED, signal=signal, latency_ms=latency_ms)

    async def fail(self, admitted: Admitted, *, wait_ms: int = 60_000) -> None:
        """Its host does not answer."""
        await self.settle(
            admitted, DeliveryState.RETRY, Reason.TIMEOUT, wait_ms=wait_ms, signal=Signal.FAILED
        )

    async def conserved(self) -> QueueStats:
        """The figures, which add up."""
        stats = await self.stats.read()
        assert stats.conserved, stats
        return stats

    async def promote(self) -> int:
        return sum([(await self.consumer("a").promote(p)).promoted for p in range(PARTITIONS)])

    async def reclaim(self, worker: str) -> list[Admitted]:
        return [a for p in range(PARTITIONS) for a in await self.consumer(worker).reclaim(p, 100)]

    async def pass_time(self, ms: int, *, watched: bool = True) -> None:
        """All of the queue's clocks go on by so much; workers that are `watched` by others all the while."""
        self._shift_ms += ms
        now_ms = await self.now_ms()
        for partition in range(PARTITIONS):
            keys = self.keys.partition(partition)
            await self.link.call("SET", keys.clock_shift, self._shift_ms)
            if watched:
                await self.link.call("SET", f"{keys.prefix}:looked", now_ms)

    async def now_ms(self) -> int:
        seconds, microseconds = await self.link.call("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000 + self._shift_ms

    async def workers(self) -> set[str]:
        """Those that the partition of inbox 0 knows."""
        prefix = self.keys.partition(self.partition_of(0)).prefix
        leases = await self.link.call("ZRANGE", f"{prefix}:consumers", 0, -1)
        groups: set[str] = set()
        for priority in Priority:
            stream = self.keys.partition(self.partition_of(0)).ready(priority)
            if await self.link.call("EXISTS", stream):
                for consumer in await self.link.call("XINFO", "CONSUMERS", stream, "workers"):
                    groups.add(consumer[1].decode())
        return {name.decode() for name in leases} | groups

    async def keys_of(self, kind: str) -> list[bytes]:
        found: list[bytes] = await self.link.call("KEYS", f"{self.settings.namespace}:*:{kind}:*")
        return found

    async def references(self) -> list[int]:
        """Of each message: how many deliveries need it, as Redis has it."""
        keys = await self.keys_of("message")
        return [int(n) for n in await asyncio.gather(*(self.link.call("HGET", key, "n") for key in keys))]

    async def reads(self) -> int:
        """How often the server has read from a connection: small calls that travel together are one."""
        info = (await self.link.call("INFO", "stats")).decode()
        return int(info.split("total_reads_processed:")[1].split("\r")[0])

    async def empty(self) -> None:
        """As after a FLUSHALL, but only for this queue."""
        names = await self.link.call("KEYS", f"{self.settings.namespace}:*")
        if names:
            await self.link.call("DEL", *names)
        await self.pass_time(0)

    async def is_whole(self, **expected: int) -> QueueStats:
        """The sum adds up, and these are all the deliveries there are."""
        stats = await self.stats.read()
        assert stats.conserved
        found = {name: getattr(stats, name) for name in ("ready", "in_flight", "retry", "scheduled")}
        found |= {name: stats.counter(name) for name in TERMINAL}
        assert {name: n for name, n in found.items() if n} == expected
        assert stats.counter("accepted") == sum(expected.values())
        return stats


@contextmanager
def one_partition_away() -> Iterator[None]:
    """As a shard of Redis may be: a fan-out breaks half-way."""
    accepted = Producer._part

    async def part(self: Producer, partition: int, *more: Any) -> Any:
        if not partition:
            raise QueueUnavailable("away")
        return await accepted(self, partition, *more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Producer, "_part", part)
        yield


@asynccontextmanager
async def open_queue(url: str, namespace: str, **environment: str) -> AsyncIterator[Queue]:
    link = Link(url)
    try:
        yield Queue(link, namespace, **environment)
    finally:
        await link.close()


async def dead_letters(queue: Queue, count: int, reason: Reason = Reason.GONE) -> None:
    """So many deliveries to hosts 0 to 2 end as dead letters."""
    for n in range(count):
        await queue.enqueue(f"d{n}", inbox=n % 3)
    for admitted in await queue.admit_everywhere():
        await queue.settle(admitted, DeliveryState.DEAD, reason)


async def die(queue: Queue, name: str, count: int, reason: Reason = Reason.GONE) -> None:
    """So many new dead letters, at six hosts."""
    for n in range(count):
        await queue.enqueue(f"{name}-{n}", inbox=n % 6)
    for admitted in await queue.admit_everywhere():
        await queue.settle(admitted, DeliveryState.DEAD, reason)


async def opened(queue: Queue, parked: int = 10) -> list[int]:
    """Host 0 has failed five times in a row; so many wait. Returns their sequences."""
    for number in range(5):
        await queue.enqueue(f"bad{number}")
        (admitted,) = await queue.admit(100)
        await queue.fail(admitted)
    waiting = [(await queue.enqueue(f"later{number}")).id.sequence for number in range(parked)]
    assert await queue.admit(100) == []
    assert (await queue.hosts.get("h0.example")).circuit is Circuit.OPEN
    return waiting


async def known(queue: Queue) -> None:
    """Host 0 has shown that it takes eight at a time."""
    for number in range(8):
        await queue.enqueue(f"first{number}")
        for admitted in await queue.admit(100):
            await queue.deliver(admitted)


async def probe_due(queue: Queue) -> None:
    state = await queue.hosts.get("h0.example")
    await queue.pass_time(max(1, state.next_probe_ms - await queue.now_ms() + 1))
