"""Takes deliveries that are ready, tries each once, and says what becomes of it.

    admit ──▶ message, key ──▶ deliver ──▶ verdict ──▶ settlement ──▶ settler

The loop never waits for a delivery: it fills free slots, and each delivery runs by itself. A delivery stays
in flight in Redis until it is settled there; if this process dies, another takes it over.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress
from typing import Final, Protocol

import structlog

from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryState, Priority, Reason
from fedsvc.domain.keys import PrivateKey
from fedsvc.domain.knock import Dialect
from fedsvc.domain.message import Message
from fedsvc.errors import KeyUnavailable, QueueCorrupt, QueueUnavailable
from fedsvc.handlers.registry import Registry
from fedsvc.queue.consumer import Admitted, Consumer, Handed, Settlement
from fedsvc.worker.beats import Beats
from fedsvc.worker.caches import KeyCache, MessageCache
from fedsvc.worker.metrics import Metrics
from fedsvc.worker.reactions import Reactions
from fedsvc.worker.settlements import Judge, Tried
from fedsvc.worker.settler import Settler
from fedsvc.worker.shares import ShareKeeper

log = structlog.get_logger(__name__)


class Delivers(Protocol):
    """What tries a delivery: see `deliverer.py`."""

    async def deliver(
        self,
        message: Message,
        inbox: str,
        key: PrivateKey,
        priority: Priority,
        dialect: Dialect,
        sent: Callable[[], None],
    ) -> Tried: ...


class Processor:
    #: seconds after which all partitions are looked at, bell or not
    SWEEP: Final = 0.5
    #: deliveries taken in one script, at most, and so many that it is worth a script when much waits
    BATCH: Final = 128
    WORTHWHILE: Final = 32
    #: seconds after which a delivery only waits for its inbox and costs next to nothing: it takes up none of
    #: the places any more, so that hosts that hang keep nobody else waiting
    SLOW: Final = 1.0
    #: deliveries in all, as a multiple of the places
    MAX_SLOW: Final = 4
    #: deliveries that were taken and not sent yet: more than this are taken only to wait here, where nothing
    #: urgent can pass them
    UNSENT: Final = 8
    #: part of the places that only urgent deliveries get
    RESERVE: Final = 16
    #: deliveries on their way, above which settlements are worth waiting for
    BUSY: Final = 64
    #: settlements that Redis has not confirmed, above which nothing more is taken
    MAX_UNSETTLED: Final = 4096
    #: times that a delivery may be handed out without being settled, before it is taken for poison
    MAX_TIMES: Final = 5

    def __init__(
        self,
        settings: Settings,
        consumer: Consumer,
        deliverer: Delivers,
        messages: MessageCache,
        keys: KeyCache,
        beats: Beats,
        metrics: Metrics,
        handlers: Registry,
        reactions: Reactions,
    ) -> None:
        self._consumer = consumer
        self._deliverer = deliverer
        self._messages = messages
        self._keys = keys
        self._beats = beats
        self._metrics = metrics
        self._judge = Judge(settings, consumer.clock, random.random, handlers)
        self.settler = Settler(
            consumer,
            beats,
            self._settled,
            woken=lambda partition: self.poke((partition,)),
            busy=lambda: len(self._flying) >= self.BUSY,
            confirmed=lambda done: reactions.tell(done.outcome) if done.outcome is not None else None,
        )
        self._partitions = settings.partitions
        self._concurrency = settings.concurrency
        self._shares = ShareKeeper()
        #: partitions that may hold work, in the order in which they are asked
        self._hot: OrderedDict[int, None] = OrderedDict.fromkeys(range(settings.partitions))
        #: partitions of which an answer was lost: what it handed out must be found again
        self._doubtful: set[int] = set()
        #: entries that are with us, in flight or waiting to be settled
        self._held: set[tuple[int, int]] = set()
        self._flying: set[asyncio.Task[None]] = set()
        #: those of them that take up a place, with their start (seconds, the loop's clock), oldest first
        self._placed: dict[asyncio.Task[None], float] = {}
        #: those that were not sent yet
        self._unsent: set[tuple[int, int]] = set()
        #: partitions in which something urgent has just come
        self._urgent: set[int] = set()
        self._rung = asyncio.Event()
        self._turn = asyncio.Event()
        self._stopping = False

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    def poke(self, partitions: Iterable[int], *, first: bool = False, urgent: bool = False) -> None:
        """There may be work in these partitions. `first`: it is new, ask there before elsewhere."""
        for partition in partitions:
            self._hot.setdefault(partition)
            if first:
                self._hot.move_to_end(partition, last=False)
            if urgent:
                self._urgent.add(partition)
                self._rung.set()
        self._turn.set()

    def stop(self) -> None:
        """Take nothing more."""
        self._stopping = True
        self._turn.set()

    async def run(self) -> None:
        """Take deliveries until `stop`. Redis being away only delays it."""
        loop = asyncio.get_running_loop()
        swept = loop.time()
        while not self._stopping:
            self._turn.clear()
            if loop.time() - swept >= self.SWEEP:
                swept = loop.time()
                self.poke(range(self._partitions))
            room = self._room()
            full = room < self._worth_asking()
            if self._hot and not full:
                try:
                    await self._take(room)
                    self._beats.beat("consume")
                except QueueUnavailable as error:
                    self._beats.fail("consume", str(error))
                    await asyncio.sleep(self.SWEEP)
                continue
            self._beats.beat("consume")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience()):
                    await self._turn.wait()

    async def run_urgent(self) -> None:
        """Take what is urgent as soon as the bell rings for it, beside `run`, until cancelled. What is missed
        here `run` takes."""
        while True:
            await self._rung.wait()
            self._rung.clear()
            while self._urgent and self._places() > 0 and not self._stopping:
                try:
                    await self._take_urgent(self._places())
                except QueueUnavailable:
                    break

    async def listen(self) -> None:
        """Follow the bell until cancelled."""
        while True:
            try:
                async with aclosing(self._consumer.listen()) as bells:
                    async for partition, urgent in bells:
                        self.poke((partition,), first=True, urgent=urgent)
            except QueueUnavailable as error:
                log.debug("bell_lost", error=str(error))
                await asyncio.sleep(self.SWEEP)

    def adopt(self, admitted: Iterable[Admitted]) -> int:
        """Take on deliveries that are in flight with us as of now. Returns how many are new."""
        return sum(self._start(a) for a in admitted)

    async def finish(self, grace: float) -> None:
        """Wait `grace` seconds for what is in flight, give up the rest, and settle what was done."""
        if self._flying:
            await asyncio.wait(self._flying, timeout=grace)
        unfinished = list(self._flying)
        for task in unfinished:
            task.cancel()
        if unfinished:
            log.info("given_up", deliveries=len(unfinished))
            await asyncio.wait(unfinished, timeout=1.0)
        try:
            async with asyncio.timeout(5.0):
                await self.settler.drained()
        except TimeoutError:
            log.warning("unsettled", deliveries=len(self.settler))

    def _places(self) -> int:
        """Places that are free."""
        if len(self.settler) >= self.MAX_UNSETTLED:
            return 0
        past = asyncio.get_running_loop().time() - self.SLOW
        while self._placed:
            task = next(iter(self._placed))
            if self._placed[task] > past:
                break
            del self._placed[task]
        return min(
            self._concurrency - len(self._placed),
            self.MAX_SLOW * self._concurrency - len(self._flying),
            self.UNSENT - len(self._unsent),
        )

    def _patience(self) -> float:
        """Seconds to wait for something to happen: until a place may be free because its delivery is slow."""
        if not self._hot or not self._placed:
            return self.SWEEP
        oldest = next(iter(self._placed.values()))
        return min(self.SWEEP, max(0.01, oldest + self.SLOW - asyncio.get_running_loop().time()))

    def _room(self) -> int:
        """Places that are free for all."""
        return self._places() - min(self.UNSENT, self._concurrency) // self.RESERVE

    def _worth_asking(self) -> int:
        """Free slots below which asking is left for later, so that it is done in batches under load."""
        return max(1, min(self._concurrency, self.UNSENT) // 2)

    async def _take(self, room: int) -> None:
        # Few partitions at a time, each for many: a script for thirty costs little more than one for three.
        partitions = list(self._hot)[: max(1, room // self.WORTHWHILE)]
        limit = min(self.BATCH, max(1, room // len(partitions)))
        for partition in partitions:
            del self._hot[partition]  # a bell that rings meanwhile puts it back
            self._urgent.discard(partition)
        await self._take_from(partitions, limit)

    async def _take_urgent(self, places: int) -> None:
        partitions = list(self._urgent)[: max(1, places // self.WORTHWHILE)]
        self._urgent.difference_update(partitions)
        await self._take_from(partitions, min(self.BATCH, max(1, places // len(partitions))), urgent=True)

    async def _take_from(self, partitions: list[int], limit: int, *, urgent: bool = False) -> None:
        asked = (self._ask(p, limit, urgent) for p in partitions)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        lost: BaseException | None = None
        for partition, answer in zip(partitions, answers, strict=True):
            if isinstance(answer, BaseException):
                self._hot[partition] = None
                lost = answer
                continue
            for number, message in answer.messages.items():
                self._messages.put((partition, number), message)
            self.adopt(answer.admitted)
            if answer.more:
                self._hot[partition] = None
        if lost is not None:
            raise lost

    async def _ask(self, partition: int, limit: int, urgent: bool) -> Handed:
        if partition in self._doubtful:
            mine = await self._consumer.recover(partition, self._concurrency + self.MAX_UNSETTLED)
            self._doubtful.discard(partition)
            found = [a for a in mine if (partition, a.entry) not in self._held]
            if found:
                return Handed(found, True, {})
        try:
            return await self._consumer.admit(partition, self._shares.of(limit), only_urgent=urgent)
        except QueueUnavailable:
            self._doubtful.add(partition)
            raise

    def _start(self, admitted: Admitted) -> bool:
        entry = (admitted.id.partition, admitted.entry)
        if entry in self._held:
            return False
        self._held.add(entry)
        self._unsent.add(entry)
        task = asyncio.get_running_loop().create_task(self._handle(admitted))
        self._flying.add(task)
        self._placed[task] = asyncio.get_running_loop().time()
        task.add_done_callback(self._landed)
        return True

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        self._placed.pop(task, None)
        if self._urgent:
            self._rung.set()
        if self._hot and self._room() >= self._worth_asking():
            self._turn.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("delivery_crashed", exc_info=error)

    def _sent(self, admitted: Admitted) -> None:
        """Only its host has to do something yet."""
        self._unsent.discard((admitted.id.partition, admitted.entry))
        if self._urgent:
            self._rung.set()
        if self._hot and self._room() >= self._worth_asking():
            self._turn.set()

    def _settled(self, settlement: Settlement) -> None:
        self._held.discard((settlement.admitted.id.partition, settlement.admitted.entry))

    async def _handle(self, admitted: Admitted) -> None:
        try:
            settlement = await self._attempt(admitted)
        except QueueUnavailable:
            # Not tried: it is still in flight with us in Redis, and found there again.
            self._held.discard((admitted.id.partition, admitted.entry))
            self._doubtful.add(admitted.id.partition)
            self.poke((admitted.id.partition,))
            return
        except Exception as error:
            log.error("delivery_failed", delivery=str(admitted.id), exc_info=error)
            settlement = self._judge.broken(admitted, None, Reason.WORKER_ERROR, type(error).__name__)
        finally:
            self._unsent.discard((admitted.id.partition, admitted.entry))
        if settlement.outcome is not None:
            self._tell(settlement.outcome)
        self.settler.add(settlement)

    async def _attempt(self, admitted: Admitted) -> Settlement:
        if admitted.problem:
            return self._judge.broken(admitted, None, Reason.MALFORMED_ENTRY, admitted.problem)
        try:
            message = await self._messages.get((admitted.id.partition, admitted.record.message))
        except QueueCorrupt as error:
            return self._judge.broken(admitted, None, Reason.MALFORMED_ENTRY, str(error))
        if message is None:
            return self._judge.broken(
                admitted, None, Reason.BODY_MISSING, "the activity is not stored any more"
            )
        if admitted.times > self.MAX_TIMES:
            problem = f"handed out {admitted.times} times without coming back"
            return self._judge.broken(admitted, message, Reason.WORKER_ERROR, problem)
        overdue = self._judge.overdue(admitted, message)
        if overdue is not None:
            return overdue
        started_ms = self._consumer.clock.now_ms()
        try:
            key = await self._keys.get(message.key_name)
        except KeyUnavailable as error:
            return self._judge.untried(admitted, message, Reason.KEY_UNAVAILABLE, str(error), started_ms)
        tried = await self._deliverer.deliver(
            message,
            admitted.record.inbox,
            key,
            admitted.record.priority,
            admitted.dialect,
            lambda: self._sent(admitted),
        )
        self._metrics.tried(message.activity_type, tried)
        return self._judge.tried(admitted, message, tried, started_ms)

    def _tell(self, delivery: Delivery) -> None:
        took_ms = self._consumer.clock.now_ms() - delivery.accepted_ms
        self._metrics.finished(delivery, took_ms)
        if delivery.state is DeliveryState.DEAD:
            log.warning(
                "dead_letter",
                delivery=str(delivery.id),
                activity=delivery.activity_id,
                host=delivery.host,
                reason=delivery.reason.name if delivery.reason else "",
                status=delivery.status,
                attempts=delivery.attempts,
            )
