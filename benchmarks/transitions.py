"""The transitions of a delivery, driven without a worker: what Redis spends on them."""

from __future__ import annotations

import asyncio
from typing import Final

from benchmarks.load import HOSTS, activity, compact, key_id
from benchmarks.service import Database
from fedsvc.config import Settings
from fedsvc.domain.delivery import Attempt, DeliveryState, Priority, Reason
from fedsvc.domain.inbox import Inbox
from fedsvc.domain.message import Message
from fedsvc.queue.consumer import Admitted, Consumer, Messages, Settlement, Shares, Signal
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.queue.producer import Producer, Terms
from fedsvc.queue.record import shown

#: of any loop here, beyond which something is wrong
_TURNS: Final = 1_000_000


def cost(database: Database, deliveries: int, batch: int, namespace: str) -> float:
    """Microseconds of Redis's CPU for each delivery that is handed out, settled as delivered and archived, up
    to `batch` in a script. Each goes to another host of 1,000, all of which are known to answer."""
    return asyncio.run(_cost(database, deliveries, batch, namespace))


async def _cost(database: Database, deliveries: int, batch: int, namespace: str) -> float:
    settings = Settings.from_environment({"REDIS_URL": database.url(), "FEDSVC_NAMESPACE": namespace})
    link = Link(settings.redis_url)
    try:
        run = _Run(link, settings, batch)
        await run.fill(1)
        await run.empty()  # hosts get to be known
        await run.fill(deliveries // HOSTS)
        before = database.cpu_seconds()
        await run.empty()
        return (database.cpu_seconds() - before) / deliveries * 1e6
    finally:
        await link.close()


class _Run:
    def __init__(self, link: Link, settings: Settings, batch: int) -> None:
        keys = Keys(settings.namespace)
        self._producer = Producer(link, keys, settings)
        self._consumer = Consumer(link, keys, settings, "bench")
        self._outcomes = OutcomeLog(link, keys, settings)
        self._partitions = range(settings.partitions)
        self._batch = batch
        self._read = dict.fromkeys(self._partitions, 0)
        hosts = [f"h{number:04}.example" for number in range(HOSTS)]
        self._inboxes = [self._producer.place(Inbox(f"https://{host}/u/bob/inbox", host)) for host in hosts]
        self._message = _message(0)
        self._sent = 0

    async def fill(self, activities: int) -> None:
        for _ in range(activities):
            self._sent += 1
            await self._producer.fan_out(_message(self._sent), self._inboxes, Terms(Priority.BULK))

    async def empty(self) -> None:
        """Until nothing is left to hand out."""
        waiting = set(self._partitions)
        for _ in range(_TURNS):
            for partition in sorted(waiting):
                taken = await self._consumer.admit(
                    partition, Shares(self._batch, 0, 0, self._batch), messages=Messages.URGENT
                )
                if taken.admitted:
                    await self._settle(partition, taken.admitted)
                elif not taken.more:
                    waiting.discard(partition)
            if not waiting:
                break
        for partition in self._partitions:
            await self._archive(partition)

    async def _settle(self, partition: int, taken: list[Admitted]) -> None:
        settlements = []
        for admitted in taken:
            attempt = Attempt(admitted.id.accepted_ms + 1000, 12, 202, Reason.OK)
            outcome = shown(
                admitted.id, admitted.record, self._message, DeliveryState.DELIVERED,
                attempt=attempt, reason=Reason.OK, status=202,
            )  # fmt: skip
            settlements.append(
                Settlement(
                    admitted, DeliveryState.DELIVERED, True, outcome=outcome,
                    signal=Signal.ANSWERED | Signal.TOOK, latency_ms=12,
                )
            )  # fmt: skip
        settled = await self._consumer.settle(partition, settlements)
        if settled.passed_over:
            raise RuntimeError(f"passed over: {settled}")

    async def _archive(self, partition: int) -> None:
        for _ in range(_TURNS):
            _, last, count = await self._outcomes.read_all(partition, self._read[partition], 1000)
            if not count:
                return
            await self._outcomes.commit(partition, self._read[partition], last, count)
            self._read[partition] = last


def _message(number: int) -> Message:
    body = compact(activity(number))
    return Message(
        body=body,
        activity_id=f"https://me.example/activities/{number:09}",
        activity_type="Announce",
        actor="https://me.example/u/ada",
        key_id=key_id("rsa"),
        key_name="none",
        origin="me.example",
        digest=Message.digest_of(body),
    )
