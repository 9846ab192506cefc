"""One worker process, wired together: the only place in `worker` that knows all its parts."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import structlog
import uvloop

from fedsvc.archive.archive import Archive
from fedsvc.archive.engine import create_engine
from fedsvc.archive.revision import check
from fedsvc.archive.spill_store import SpillStore
from fedsvc.background import end
from fedsvc.config import Settings
from fedsvc.errors import ArchiveUnavailable, QueueUnavailable
from fedsvc.handlers.registry import Registry
from fedsvc.queue.bell import Bell
from fedsvc.queue.consumer import Consumer
from fedsvc.queue.format import record_format
from fedsvc.queue.hosts import Hosts
from fedsvc.queue.key_registry import KeyRegistry
from fedsvc.queue.keys import Keys
from fedsvc.queue.keystore import KeyStore, key_cipher, key_lifetime_s
from fedsvc.queue.link import Link
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.queue.schedules import Schedules
from fedsvc.queue.server_info import record_partitions
from fedsvc.queue.spill import Spill
from fedsvc.tracing import Tracing
from fedsvc.worker import tally
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.archival_handler import ArchivalHandler
from fedsvc.worker.archive_purger import ArchivePurger
from fedsvc.worker.beats import Beats
from fedsvc.worker.caches import KeyCache, MessageCache
from fedsvc.worker.deliverer import Deliverer
from fedsvc.worker.journal import Journal
from fedsvc.worker.lifecycle_manager import LifecycleManager
from fedsvc.worker.memory import MemoryWatch
from fedsvc.worker.metrics import Metrics
from fedsvc.worker.processor import Processor
from fedsvc.worker.reactions import Reactions
from fedsvc.worker.retry_manager import RetryManager
from fedsvc.worker.roster import Roster
from fedsvc.worker.scheduled_runs import ScheduledRuns
from fedsvc.worker.scheduler import Scheduler
from fedsvc.worker.signer import Signer
from fedsvc.worker.spiller import Spiller

log = structlog.get_logger(__name__)

Status = Callable[[dict[str, Any]], None]
#: seconds between two reports to the parent
_REPORT_EVERY: Final = 1.0
#: that a process opens, at most
_FILES: Final = 65_536
#: seconds between tries to reach Redis or SQL at start
_START_PAUSE: Final = 0.25


def run(settings: Settings, *, status: Status | None = None) -> int:
    """Work until SIGTERM or SIGINT; returns the exit code.

    `status` is called about once a second with `{"ready": bool, "problems": {loop: text}, "stuck": [loop]}`.
    Raises ConfigurationError.
    """
    _open_many_files()
    return uvloop.run(Worker(settings, status or (lambda _: None)).run())


def _open_many_files() -> None:
    """As many as this process is allowed to: each connection that is kept is one, and many systems begin with
    1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft not in (resource.RLIM_INFINITY, most) and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Worker:
    def __init__(self, settings: Settings, status: Status) -> None:
        self._settings = settings
        self._status = status
        #: never used again, so that what a former process held is told apart from what this one holds
        self.name = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        settings = self._settings
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)
        cipher = key_cipher(settings)
        handlers = Registry.load()
        tracing = Tracing.from_settings(settings, "fedsvc-worker")
        async with AsyncExitStack() as stack:
            if tracing is not None:
                stack.push_async_callback(asyncio.to_thread, tracing.close)
            link = Link.from_settings(settings)
            stack.push_async_callback(link.close)
            engine = create_engine(settings)
            archive = Archive(engine)
            stack.push_async_callback(archive.close)
            keys = Keys(settings.namespace)
            consumer = Consumer(link, keys, settings, self.name)
            if not await self._queue_is_there(link, keys, consumer):
                return 0

            beats = Beats("consume", "settle", "promote", "reclaim", "archive", "tidy", "spill")
            signer = Signer(settings.sign_processes, settings.sign_threads)
            stack.callback(signer.close)
            deliverer = Deliverer(settings, signer)
            stack.push_async_callback(deliverer.close)
            await deliverer.start()
            store = KeyStore(link, keys, cipher, lifetime_s=key_lifetime_s(settings))
            reactions = Reactions(handlers)
            stack.push_async_callback(asyncio.to_thread, reactions.close)
            affinity = Affinity(self.name, settings.partitions)
            processor = Processor(
                settings,
                consumer,
                deliverer,
                MessageCache(consumer, settings.message_cache_bytes),
                KeyCache(store, settings.key_cache_size),
                beats,
                Metrics(),
                handlers,
                reactions,
                affinity,
                Journal.of(settings, tracing),
            )
            retries = RetryManager(settings, consumer, processor, affinity, beats)
            roster = Roster(Bell(link, keys), consumer, affinity, processor)
            outcomes = OutcomeLog(link, keys, settings)
            archival = ArchivalHandler(settings, outcomes, archive, beats, affinity)
            purger = ArchivePurger(settings, outcomes, archive, consumer.clock.now_ms, affinity)
            memory = MemoryWatch(settings)
            hosts = Hosts(link, keys, settings)
            lifecycle = LifecycleManager(link, outcomes, hosts, memory, beats, affinity)
            registry = KeyRegistry(link, keys, cipher, settings)
            runs = ScheduledRuns(settings, link, keys, handlers, registry, outcomes, hosts, purger)
            scheduler = Scheduler(
                Schedules(link, keys),
                runs.carry_out,
                consumer.clock.now_ms,
                self.name,
                lambda: memory.critical,
            )
            spiller = Spiller(Spill(link, keys, settings), SpillStore(engine), memory, beats, affinity)

            # What is there now stays: looking through all of it again and again would stop everything for a
            # tenth of a second each time.
            gc.collect()
            gc.freeze()
            async with asyncio.TaskGroup() as loops:
                background = [
                    loops.create_task(work, name=name)
                    for name, work in (
                        ("settle", processor.settler.run()),
                        ("listen", roster.listen()),
                        ("promote", retries.promote()),
                        ("reclaim", retries.reclaim()),
                        ("archive", self._archive(archival, purger, archive, beats)),
                        ("tidy", lifecycle.run()),
                        ("spill", spiller.run()),
                        ("schedule", scheduler.run()),
                        ("report", self._report(beats, processor, affinity)),
                    )
                ]
                background.append(loops.create_task(processor.run_urgent(), name="urgent"))
                background.append(loops.create_task(roster.run(), name="roster"))
                taking = loops.create_task(processor.run(), name="consume")
                await self._stopping.wait()
                log.info("stopping", in_flight=processor.in_flight)
                self._status({"ready": False, "problems": {"worker": "stopping"}})
                processor.stop()
                with suppress(QueueUnavailable, TimeoutError):
                    async with asyncio.timeout(1.0):
                        await roster.leave()
                await taking
                for task in background[1:4]:  # what would take on more work
                    task.cancel()
                keeping = loops.create_task(retries.keep(), name="keep")
                await processor.finish(settings.shutdown_grace)
                await end([keeping])
                archiving = background[4]
                archiving.cancel()
                await asyncio.wait([archiving], timeout=1.0)
                await self._leave(consumer, archival)
                tally.tell()
                await end(background)
        log.info("stopped")
        return 0

    async def _archive(
        self, archival: ArchivalHandler, purger: ArchivePurger, archive: Archive, beats: Beats
    ) -> None:
        """Archive, and purge the archive, once the database is there and migrated. Deliveries do not wait."""
        while True:
            try:
                await check(archive.engine)
                break
            except ArchiveUnavailable as error:
                beats.fail("archive", str(error))
                await asyncio.sleep(_START_PAUSE)
        await asyncio.gather(archival.run(), purger.run())

    async def _report(self, beats: Beats, processor: Processor, affinity: Affinity) -> None:
        while True:
            tally.tell()
            problems = beats.problems
            self._status(
                {
                    "ready": not problems,
                    "problems": problems,
                    "stuck": beats.stuck,
                    "in_flight": processor.in_flight,
                    "partitions": len(affinity.own),
                }
            )
            # At start the loops need a moment; whoever waits for them should not wait a second more.
            await asyncio.sleep(0.05 if "not started" in problems.values() else _REPORT_EVERY)

    async def _leave(self, consumer: Consumer, archival: ArchivalHandler) -> None:
        """Hand what is not finished to the others at once, if Redis is there."""
        try:
            async with asyncio.timeout(2.0):
                left = await asyncio.gather(*(consumer.leave(p) for p in range(self._settings.partitions)))
                await archival.leave()
            log.info("left", partitions_with_work=sum(map(bool, left)))
        except (QueueUnavailable, TimeoutError):
            log.warning("left_without_word")  # the lease will end by itself

    async def _queue_is_there(self, link: Link, keys: Keys, consumer: Consumer) -> bool:
        """Wait until Redis answers, and its time is known; false if told to stop meanwhile. Raises
        ConfigurationError."""
        while not self._stopping.is_set():
            try:
                await record_partitions(link, keys, self._settings)
                await record_format(link, keys)
                await consumer.learn_the_time(0)
                return True
            except QueueUnavailable as error:
                self._status({"ready": False, "problems": {"redis": str(error)}})
            with suppress(TimeoutError):
                async with asyncio.timeout(_START_PAUSE):
                    await self._stopping.wait()
        return False
