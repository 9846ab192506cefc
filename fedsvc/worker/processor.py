"""Takes deliveries that are ready, tries each once, and says what becomes of it.

    admit ──▶ message, key ──▶ deliver ──▶ verdict ──▶ settlement ──▶ settler

The loop never waits for a delivery: it fills free slots, and each delivery runs by itself. A delivery stays
in flight in Redis until it is settled there; if this process dies, another takes it over.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryState, Reason
from fedsvc.errors import KeyUnavailable, QueueCorrupt, QueueUnavailable
from fedsvc.handlers.registry import Registry
from fedsvc.queue.consumer import Admitted, Consumer, Handed, Messages, Settlement
from fedsvc.worker.absences import Absences
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.beats import Beats
from fedsvc.worker.caches import KeyCache, MessageCache
from fedsvc.worker.journal import Journal
from fedsvc.worker.metrics import Metrics
from fedsvc.worker.places import Places
from fedsvc.worker.reactions import Reactions
from fedsvc.worker.settlements import Delivers, Judge
from fedsvc.worker.settler import Settler
from fedsvc.worker.shares import ShareKeeper

log = structlog.get_logger(__name__)


class Processor:
    #: seconds after which all partitions are looked at, bell or not
    SWEEP: Final = 0.5
    #: deliveries taken in one script, at most: with fewer, Redis spends more on each; with more, nothing is
    #: saved and what is urgent waits for it; and places for each script, where partitions may have few
    BATCH: Final = 64
    FEW: Final = 8
    #: deliveries that are begun in one turn of the event loop: a tenth of a millisecond each
    SLICE: Final = 8
    #: deliveries that wait here to be sent, above which settlements wait for others
    BUSY: Final = 8
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
        affinity: Affinity,
        journal: Journal | None = None,
    ) -> None:
        self._affinity = affinity
        #: set when there is something in another worker's partition to look at later
        self.elsewhere = asyncio.Event()
        self._consumer = consumer
        self._deliverer = deliverer
        self._messages = messages
        self._keys = keys
        self._beats = beats
        self._metrics = metrics
        self._journal = journal
        self._judge = Judge(settings, consumer.clock, random.random, handlers)
        self.settler = Settler(
            consumer,
            beats,
            self._settled,
            woken=lambda partition: self.poke((partition,)),
            busy=lambda: self._places.unsent >= self.BUSY,
            confirmed=lambda done: reactions.tell(done.outcome) if done.outcome is not None else None,
        )
        self._concurrency = settings.concurrency
        self._places = Places(settings.concurrency, time.monotonic)
        self._shares = ShareKeeper()
        #: partitions that may hold work, in the order in which they are asked
        self._hot: OrderedDict[int, None] = OrderedDict.fromkeys(range(settings.partitions))
        #: those that gave as many as they were asked for, the last time
        self._deep: set[int] = set()
        #: partitions of which an answer was lost, to us or others: what it handed out must be found again
        self.doubtful: set[int] = set()
        #: entries that are with us, in flight or waiting to be settled
        self.held: set[tuple[int, int]] = set()
        self._flying: set[asyncio.Task[None]] = set()
        #: partitions in which something urgent has just come
        self._urgent: set[int] = set()
        self._rung = asyncio.Event()
        self._turn = asyncio.Event()
        self._stopping = self._finished = False
        #: partitions of which nothing is asked until they answer again
        self._absent = Absences(consumer.keep, self._returned)

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    def poke(self, partitions: Iterable[int], *, first: bool = False, urgent: bool = False) -> None:
        """There may be work in these partitions. `first`: it is new, ask there before elsewhere. What is
        another worker's is left to it."""
        for partition in partitions:
            if not self._affinity.serves(partition):
                if self._affinity.heard(partition, urgent=urgent):
                    self.elsewhere.set()
                continue
            if partition in self._absent:
                continue
            self._hot.setdefault(partition)
            if first:
                self._hot.move_to_end(partition, last=False)
            if urgent:
                self._urgent.add(partition)
                self._rung.set()
        self._turn.set()

    @property
    def idle(self) -> bool:
        """Whether there is room, and nothing known that may fill it."""
        return not self._hot and self._places.worth

    def help_out(self, partitions: Iterable[int]) -> None:
        """Take what is urgent in these, whoever's they are."""
        self._urgent.update(partition for partition in partitions if partition not in self._absent)
        if self._urgent:
            self._rung.set()

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
                self.poke(self._affinity.own)
                # whoever's they are, this is with us
                self._hot.update(dict.fromkeys(p for p in self.doubtful if p not in self._absent))
            room = self._room()
            if self._hot and room >= self._places.worth_asking:
                await self._take(room)
                self._tell_how_it_is()
                continue
            self._tell_how_it_is()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._places.patience(self.SWEEP) if self._hot else self.SWEEP):
                    await self._turn.wait()
        self._absent.close()

    def _tell_how_it_is(self) -> None:
        if self._absent.problem:
            self._beats.fail("consume", self._absent.problem)
        else:
            self._beats.beat("consume")

    def _gone(self, partition: int, error: QueueUnavailable) -> None:
        """Redis does not answer for it, or for what its deliveries need."""
        self._absent.add(partition, str(error), self.SWEEP)
        self._hot.pop(partition, None)
        self._urgent.discard(partition)
        self._turn.set()

    def _returned(self, partition: int) -> None:
        self._hot[partition] = None
        self._turn.set()

    async def run_urgent(self) -> None:
        """Take what is urgent as soon as the bell rings for it, beside `run`, until cancelled. What is missed
        here `run` takes."""
        while True:
            await self._rung.wait()
            self._rung.clear()
            while self._urgent and (places := self._room(urgent=True)) > 0 and not self._stopping:
                await self._take_urgent(places)

    def adopt(self, admitted: Iterable[Admitted]) -> int:
        """Take on deliveries that are in flight with us as of now. Returns how many are new."""
        loop = asyncio.get_running_loop()
        return sum(self._start(loop, a) for a in admitted)

    async def finish(self, grace: float) -> None:
        """Wait `grace` seconds for what is in flight, give up the rest, and settle what was done."""
        if self._flying:
            await asyncio.wait(self._flying, timeout=grace)
        self._finished = True  # nothing more is begun, also of what comes in an answer that was late
        if unfinished := list(self._flying):
            for task in unfinished:
                task.cancel()
            log.info("given_up", deliveries=len(unfinished))
            await asyncio.wait(unfinished, timeout=1.0)
        try:
            async with asyncio.timeout(5.0):
                await self.settler.drained()
        except TimeoutError:
            log.warning("unsettled", deliveries=len(self.settler))

    def _room(self, *, urgent: bool = False) -> int:
        """How many more may be taken."""
        if len(self.settler) >= self.MAX_UNSETTLED:
            return 0
        return self._places.free if urgent else self._places.free_for_all

    async def _take(self, room: int) -> None:
        partitions = self._affinity.choose(self._hot, self.doubtful, max(1, room // self.FEW))
        # One that gives as many as it is asked for is asked alone: a script for thirty costs little more than
        # one for three. Others are asked together, as each may have few.
        if partitions[0] in self._deep:
            partitions = partitions[:1]
        else:
            partitions = [partition for partition in partitions if partition not in self._deep]
        limit = min(self.BATCH, max(1, room // len(partitions)))
        for partition in partitions:
            del self._hot[partition]  # a bell that rings meanwhile puts it back
            self._urgent.discard(partition)
        await self._take_from(partitions, limit)

    async def _take_urgent(self, places: int) -> None:
        partitions = list(self._urgent)[: max(1, places // self.FEW)]
        self._urgent.difference_update(partitions)
        await self._take_from(partitions, min(self.BATCH, max(1, places // len(partitions))), urgent=True)

    async def _take_from(self, partitions: list[int], limit: int, *, urgent: bool = False) -> None:
        answers: Sequence[Handed | QueueUnavailable]
        if len(partitions) == 1:  # awaited as it is, which takes three turns of the loop less
            answers = [await self._ask_safely(partitions[0], limit, urgent)]
        else:
            answers = await asyncio.gather(*(self._ask_safely(p, limit, urgent) for p in partitions))
        for partition, answer in zip(partitions, answers, strict=True):
            if isinstance(answer, QueueUnavailable):
                self._gone(partition, answer)
                continue
            for number, message in answer.messages.items():
                self._messages.put((partition, number), message)
            taken = self.adopt(answer.admitted[: self.SLICE])
            for start in range(self.SLICE, len(answer.admitted), self.SLICE):
                await asyncio.sleep(0)  # what is urgent may have come, and answers
                taken += self.adopt(answer.admitted[start : start + self.SLICE])
            if partition not in self._affinity.own:
                self._metrics.helped(taken)
            if answer.more and self._affinity.serves(partition):
                self._hot[partition] = None
            if not urgent:
                (self._deep.add if len(answer.admitted) >= limit else self._deep.discard)(partition)

    async def _ask_safely(self, partition: int, limit: int, urgent: bool) -> Handed | QueueUnavailable:
        try:
            return await self._ask(partition, limit, urgent)
        except QueueUnavailable as error:
            return error

    async def _ask(self, partition: int, limit: int, urgent: bool) -> Handed:
        try:
            if partition in self.doubtful:
                self.doubtful.discard(partition)  # before: it may become so again meanwhile
                known = self.held.copy()  # what ends meanwhile may be in the answer, if that is older
                mine = await self._consumer.recover(partition, self._concurrency + self.MAX_UNSETTLED)
                known |= self.held
                found = [a for a in mine if (partition, a.entry) not in known]
                if found:
                    return Handed(found, True, {})
            # Under load most are known, unless urgent; else, asking for one takes as long as all the rest.
            return await self._consumer.admit(
                partition,
                self._shares.of(limit),
                only_urgent=urgent,
                messages=Messages.ALL if urgent or not self._flying else Messages.URGENT,
            )
        except QueueUnavailable:
            self.doubtful.add(partition)
            raise

    def _start(self, loop: asyncio.AbstractEventLoop, admitted: Admitted) -> bool:
        entry = (admitted.id.partition, admitted.entry)
        if self._finished or entry in self.held:
            return False
        self.held.add(entry)
        self._places.take(entry)
        self._flying.add(task := loop.create_task(self._handle(admitted)))
        task.add_done_callback(self._landed)
        return True

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        self._made_room()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("delivery_crashed", exc_info=error)

    def _sent(self, admitted: Admitted) -> None:
        """Only its host has to do something yet."""
        self._places.sent((admitted.id.partition, admitted.entry))
        self._made_room()

    def _made_room(self) -> None:
        if self._urgent:
            self._rung.set()
        if self._hot and self._places.worth:
            self._turn.set()

    def _settled(self, settlement: Settlement) -> None:
        self.held.discard((settlement.admitted.id.partition, settlement.admitted.entry))

    async def _handle(self, admitted: Admitted) -> None:
        try:
            settlement = await self._attempt(admitted)
        except QueueUnavailable as error:
            # Not tried: it is still in flight with us in Redis, and found there again, after a pause: of a
            # cluster only the part may be away that has its key.
            self.held.discard((admitted.id.partition, admitted.entry))
            self.doubtful.add(admitted.id.partition)
            self._gone(admitted.id.partition, error)
            return
        except Exception as error:
            log.error("delivery_failed", delivery=str(admitted.id), exc_info=error)
            settlement = self._judge.broken(admitted, None, Reason.WORKER_ERROR, type(error).__name__)
        finally:
            self._places.leave((admitted.id.partition, admitted.entry))
        if settlement.outcome is not None:
            self._tell(settlement.outcome)
        self.settler.add(settlement)

    async def _attempt(self, admitted: Admitted) -> Settlement:
        if admitted.problem:
            return self._judge.broken(admitted, None, Reason.MALFORMED_ENTRY, admitted.problem)
        stored = (admitted.id.partition, admitted.record.message)
        try:
            message = self._messages.held(stored) or await self._messages.get(stored)
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
            key = self._keys.held(message.key_name) or await self._keys.get(message.key_name)
        except KeyUnavailable as error:
            settlement = self._judge.untried(
                admitted, message, Reason.KEY_UNAVAILABLE, str(error), started_ms
            )
            if self._journal is not None:
                self._journal.attempted(admitted, message, settlement)
            return settlement
        if not admitted.record.attempts:
            self._metrics.first(started_ms - admitted.id.accepted_ms)
        tried = await self._deliverer.deliver(
            message,
            admitted.record.inbox,
            key,
            admitted.record.priority,
            admitted.dialect,
            lambda: self._sent(admitted),
        )
        self._metrics.tried(message.activity_type, tried)
        settlement = self._judge.tried(admitted, message, tried, started_ms)
        if self._journal is not None:
            self._journal.attempted(admitted, message, settlement)
        return settlement

    def _tell(self, delivery: Delivery) -> None:
        took_ms = self._consumer.clock.now_ms() - delivery.accepted_ms
        self._metrics.finished(delivery, took_ms)
        # One that is too old, the archival handler tells of: it also sees those that end without us.
        if delivery.state is DeliveryState.DEAD and delivery.reason is not Reason.MAX_AGE:
            log.warning(
                "dead_letter",
                delivery=str(delivery.id),
                activity=delivery.activity_id,
                host=delivery.host,
                request_id=delivery.request_id,
                reason=delivery.reason.name if delivery.reason else "",
                status=delivery.status,
                attempts=delivery.attempts,
            )
