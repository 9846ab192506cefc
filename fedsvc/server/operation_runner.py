"""Carries out operations on dead letters, a batch at a time, wherever they were left."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog

from fedsvc.background import end
from fedsvc.domain.delivery import Delivery
from fedsvc.domain.operation import Operation, Progress
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.dead_letters import DeadLetters
from fedsvc.queue.operations import Operations

log = structlog.get_logger(__name__)

#: told when an operation has ended: it, and how many it moved. Raises QueueUnavailable
Ended = Callable[[Operation, int], Awaitable[None]]


class _LetGo(Exception):
    """Somebody else has the operation."""


class OperationRunner:
    """One per server process. Every process has one; each operation is in the hands of one at a time."""

    #: seconds between two looks for what others have left
    EVERY: Final = 2.0
    #: milliseconds after which others may go on with what a process does not write down any more
    LEASE_MS: Final = 15_000
    #: entries looked at in one step
    BATCH: Final = 500
    #: operations that one process carries out at the same time
    AT_ONCE: Final = 4

    def __init__(self, operations: Operations, letters: DeadLetters, ended: Ended) -> None:
        self._operations = operations
        self._letters = letters
        self._ended = ended
        self._me = secrets.token_hex(8)
        self._added = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}

    def look(self) -> None:
        """There is a new one."""
        self._added.set()

    async def run(self) -> None:
        """For ever. Redis being away only delays it."""
        try:
            while True:
                try:
                    for id in await self._operations.open():
                        if len(self._running) >= self.AT_ONCE:
                            break
                        # What others have in hand takes no place here.
                        if id not in self._running and (taken := await self.take(id)):
                            self._start(*taken)
                except QueueUnavailable as error:
                    log.debug("operations_wait", error=str(error))
                self._added.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.EVERY):
                        await self._added.wait()
        finally:
            await end(list(self._running.values()))

    async def take(self, id: str) -> tuple[Operation, int] | None:
        """Have an operation in hand: it, as whoever had it last has left it, and until when (see
        `Operations.hold`). None if somebody else has it, or it is over. Raises QueueUnavailable."""
        # One that cannot be read here must not be held: others may be able to.
        if await self._operations.get(id) is None:
            return None
        until = await self._operations.hold(id, self._me, self.LEASE_MS)
        operation = await self._operations.get(id) if until else None
        return None if operation is None else (operation, until)

    def _start(self, operation: Operation, until: int) -> None:
        task = asyncio.create_task(self.carry_out(operation, until))
        self._running[operation.id] = task
        task.add_done_callback(lambda _: self._running.pop(operation.id, None))

    async def carry_out(self, operation: Operation, until: int) -> None:
        """One that was taken, as far as it goes: to its end, or until Redis goes away or another has it."""
        id = operation.id
        log.debug("operation_taken_up", operation=id, kind=operation.order.kind.value)
        try:
            try:
                await self._work(operation, until)
            except (QueueUnavailable, _LetGo):
                raise
            except Exception:  # it would fail again and again
                log.exception("operation_failed", operation=id)
                await self._finish(operation, operation.progress, error="it failed; see the log")
        except _LetGo:
            log.debug("operation_let_go", operation=id)
        except QueueUnavailable as error:
            log.warning("operation_waits", operation=id, error=str(error))

    async def _work(self, operation: Operation, until: int) -> None:
        progress = operation.progress
        if not progress.counted:
            progress, until = await self._count(operation, progress)
        if not operation.order.dry_run:
            progress = await self._move(operation, progress, until)
        await self._finish(operation, progress)

    async def _finish(self, operation: Operation, progress: Progress, *, error: str = "") -> None:
        completed = await self._letters.moved(operation.id)
        # Told first: then nothing has ended of which nobody was told.
        await self._ended(replace(operation, progress=progress, error=error), completed)
        if await self._operations.end(operation.id, self._me, progress, completed=completed, error=error):
            log.info(
                "operation_ended",
                operation=operation.id,
                kind=operation.order.kind.value,
                total=progress.total,
                completed=completed,
                error=error or None,
            )

    async def _save(self, operation: Operation, progress: Progress, completed: int = 0) -> int:
        until = await self._operations.hold(
            operation.id, self._me, self.LEASE_MS, progress=progress, completed=completed
        )
        if not until:
            raise _LetGo
        return until

    async def _count(self, operation: Operation, progress: Progress) -> tuple[Progress, int]:
        order = operation.order
        if order.ids:
            total = len(await self._chosen(operation))
            progress = replace(progress, total=total, failed=len(set(order.ids)) - total)
        else:
            for partition in range(progress.partition, len(operation.bounds)):
                after: int | None = progress.after if partition == progress.partition else 0
                while after is not None and not self._over(operation, progress.total):
                    batch = await self._letters.batch(
                        partition,
                        after=after,
                        until=operation.bounds[partition],
                        limit=self.BATCH,
                        chosen=order.chosen,
                    )
                    after = batch.last
                    progress = replace(
                        progress,
                        partition=partition,
                        after=after or operation.bounds[partition],
                        total=progress.total + len(batch.letters),
                    )
                    await self._save(operation, progress)
        reached = self._over(operation, progress.total)
        total = min(progress.total, order.limit) if order.limit else progress.total
        progress = replace(progress, counted=True, partition=0, after=0, total=total, limit_reached=reached)
        return progress, await self._save(operation, progress)

    @staticmethod
    def _over(operation: Operation, found: int) -> bool:
        return bool(operation.order.limit) and found > operation.order.limit

    async def _chosen(self, operation: Operation) -> list[Delivery]:
        """Those asked for by id that were dead letters before the operation began."""
        found = await self._letters.find(dict.fromkeys(operation.order.ids))
        bounds = operation.bounds
        return [letter for letter in found if letter.outcome <= bounds[letter.id.partition]]

    async def _move(self, operation: Operation, progress: Progress, until: int) -> Progress:
        order = operation.order
        done = await self._letters.moved(operation.id)
        kind = order.kind.value

        async def move(letters: list[Delivery]) -> int:
            room = order.limit - done if order.limit else len(letters)
            moved = await self._letters.move(kind, letters[: max(0, room)], operation.id, not_after_ms=until)
            if moved is None:
                raise _LetGo
            return moved

        if order.ids:
            by_partition: dict[int, list[Delivery]] = {}
            for letter in await self._chosen(operation):
                by_partition.setdefault(letter.id.partition, []).append(letter)
            for letters in by_partition.values():
                done += await move(letters)
                until = await self._save(operation, progress, done)
            return progress
        for partition in range(progress.partition, len(operation.bounds)):
            after: int | None = progress.after if partition == progress.partition else 0
            while after is not None and not (order.limit and done >= order.limit):
                batch = await self._letters.batch(
                    partition,
                    after=after,
                    until=operation.bounds[partition],
                    limit=self.BATCH,
                    chosen=order.chosen,
                )
                done += await move(batch.letters)
                after = batch.last
                bound = operation.bounds[partition]
                progress = replace(progress, partition=partition, after=after or bound)
                until = await self._save(operation, progress, done)
        return progress
