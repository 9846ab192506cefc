"""What a run of a schedule does: a fan-out, or a task of maintenance. Each can be repeated."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

from fedsvc.config import Settings
from fedsvc.domain.activity import parse_activity
from fedsvc.domain.dead_letters import DeadLetterFilter
from fedsvc.domain.inbox import origin_of, parse_inbox
from fedsvc.domain.keys import registered_name
from fedsvc.domain.message import Message
from fedsvc.domain.operation import OperationKind, Order
from fedsvc.domain.schedule import FanOutTemplate, Schedule, Task
from fedsvc.errors import InvalidKey
from fedsvc.handlers.registry import Registry
from fedsvc.queue.cleanup import Cleanup
from fedsvc.queue.dead_letters import DeadLetters
from fedsvc.queue.host_list import HostList, HostOrder
from fedsvc.queue.hosts import Circuit, Hosts
from fedsvc.queue.key_registry import KeyRegistry
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.operations import Operations
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.queue.producer import Place, Producer, Terms
from fedsvc.worker.archive_purger import ArchivePurger

#: hosts that are probed in one run, unless told; 0 stands for all
PROBED: Final = 1000
#: batches of the archive that are purged in one run
_BATCHES: Final = 10_000


class ScheduledRuns:
    def __init__(
        self,
        settings: Settings,
        link: Link,
        keys: Keys,
        handlers: Registry,
        registry: KeyRegistry,
        outcomes: OutcomeLog,
        hosts: Hosts,
        purger: ArchivePurger,
    ) -> None:
        self._settings = settings
        self._handlers = handlers
        self._registry = registry
        self._producer = Producer(link, keys, settings)
        self._letters = DeadLetters(link, keys, settings)
        self._operations = Operations(link, keys)
        self._host_list = HostList(link, keys, settings)
        self._hosts = hosts
        self._cleanup = Cleanup(link, outcomes, hosts, settings)
        self._purger = purger

    async def carry_out(self, schedule: Schedule, time_ms: int) -> None:
        """Raises FedsvcError."""
        arguments = schedule.arguments
        match schedule.task:
            case None:
                assert schedule.fan_out is not None
                await self._fan_out(schedule.fan_out, schedule.run_id(time_ms), time_ms)
            case Task.ARCHIVE_PURGE:
                await self._purge()
            case Task.HOST_PROBE:
                await self._probe(int(arguments.get("limit", PROBED)))
            case Task.DEAD_LETTER_REPLAY:
                await self._replay(schedule, time_ms)
            case Task.CLEANUP:
                await self._cleanup.run(aggressive=bool(arguments.get("aggressive", False)))

    async def _fan_out(self, template: FanOutTemplate, run_id: str, time_ms: int) -> None:
        body = template.filled(run_id, time_ms)
        # How large it may be was said when the schedule was made, by the limits of whoever made it.
        activity = parse_activity(body, max_bytes=sys.maxsize)
        rules = self._handlers.rules(activity)
        relation = rules.relation.asked(ordering_key="", supersede_key="")
        message = Message(
            body=body,
            activity_id=activity.id,
            activity_type=activity.type,
            actor=activity.actor,
            key_id=template.key_id,
            key_name=registered_name(template.key_id),
            origin=origin_of(template.key_id),
            request_id=run_id,
            digest=Message.digest_of(body),
        )
        priority = rules.priority if template.priority is None else template.priority
        terms = Terms(priority, request_id=run_id, relation=relation)
        places = {}
        for inbox in template.inboxes:
            place = self._producer.place(parse_inbox(inbox, allow_http=self._settings.allow_http))
            places[place.url] = place
        await self._check_key(message, list(places.values()), terms)
        await self._producer.fan_out(message, list(places.values()), terms)

    async def _check_key(self, message: Message, places: list[Place], terms: Terms) -> None:
        """A run that was left half-way is finished with a key that is being deleted. Raises InvalidKey."""
        if await self._registry.usable(message.key_id) is None:
            parts = await self._producer.known(message, places, terms, fan_out=True)
            if not await self._registry.finishes(message.key_id, parts):
                raise InvalidKey("fan_out.key_id", f"no key {message.key_id} is registered")

    async def _purge(self) -> None:
        for _ in range(_BATCHES):
            if not await self._purger.batch():
                break
            await asyncio.sleep(ArchivePurger.BREATH)

    async def _probe(self, limit: int) -> None:
        snapshot = await self._host_list.snapshot()
        most = limit or len(snapshot)
        down = snapshot.page(HostOrder.BACKLOG, after=None, limit=most, states={Circuit.OPEN})
        for state in down.hosts:
            await self._hosts.seen(state.host)

    async def _replay(self, schedule: Schedule, time_ms: int) -> None:
        given: dict[str, Any] = dict(schedule.arguments)
        limit = int(given.pop("limit", 0))
        # An age is counted from the run's own time, so that a run that is repeated means the same.
        max_age_s = float(given.pop("max_age_seconds", 0))
        if max_age_s:
            given["start_ms"] = max(1, time_ms - int(max_age_s * 1000))
        order = Order(OperationKind.REPLAY, chosen=DeadLetterFilter.from_json(given), limit=limit)
        await self._operations.begin(
            order,
            f"schedule {schedule.id}",
            await self._letters.bounds(),
            request_id=schedule.run_id(time_ms),
        )
