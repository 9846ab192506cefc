"""Operations on dead letters: noted in Redis beside what they change, carried out by whoever holds them.

One server process at a time has an operation in hand, under a lease; how far it is is written down after each
step, and every step can be repeated. How many dead letters it has moved is counted with the moves themselves
(`lua/exhume.lua`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import orjson
import structlog

from fedsvc.domain.dead_letters import DeadLetterFilter
from fedsvc.domain.delivery import DeliveryId
from fedsvc.domain.operation import Operation, OperationKind, Order, Progress
from fedsvc.errors import Overloaded, RequestIdReused
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.script import Script

log = structlog.get_logger(__name__)

_FIELDS: Final = ("order", "principal", "created", "bounds", "progress", "completed", "ended", "error")


class Operations:
    """Every method raises QueueUnavailable."""

    #: that may go on at the same time
    MOST_OPEN: Final = 32
    #: that are remembered
    REMEMBERED: Final = 1000

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._prefix = keys.operations
        self._begin = Script("begin_operation")
        self._hold = Script("hold_operation")
        #: those of whose being unreadable was told
        self._told: set[str] = set()

    async def begin(
        self, order: Order, principal: str, bounds: Sequence[int], *, request_id: str = ""
    ) -> tuple[Operation, bool]:
        """Note an operation; whoever looks for work carries it out. Named by the same request id, it is the
        one that was noted first. Returns also whether it is new. Raises Overloaded, RequestIdReused."""
        id = _id_of(order.kind, principal, request_id) if request_id else secrets.token_hex(10)
        created_ms = await self._link.now_ms()
        operation = Operation(id, order, principal, created_ms, tuple(bounds))
        packed = _order_as_json(order)
        mine = secrets.token_hex(8)
        fields: dict[str, str | int | bytes] = {
            "order": packed,
            "principal": principal,
            "created": created_ms,
            "bounds": orjson.dumps(operation.bounds),
            "progress": orjson.dumps(asdict(operation.progress)),
            "mark": mine,
        }
        arguments = [part for pair in fields.items() for part in pair]
        kept = await self._link.run(
            self._begin, self._prefix, [id, created_ms, self.MOST_OPEN, self.REMEMBERED, *arguments],
            durable=True,
        )  # fmt: skip
        if not kept:
            raise Overloaded(f"{self.MOST_OPEN} operations are going on already", 10)
        if kept[0] != packed:
            raise RequestIdReused(f"{request_id!r} was the name of another operation")
        return await self.get(id) or operation, kept[1] == mine.encode()

    async def get(self, id: str) -> Operation | None:
        """None if there is none that this version can read. `completed` is what was written down last."""
        raw = await self._link.call("HMGET", f"{self._prefix}:id:{id}", *_FIELDS)
        if raw[0] is None:
            return None
        try:
            return _operation(id, raw)
        except (ValueError, KeyError, TypeError) as error:
            if id not in self._told:
                self._told.add(id)
                log.warning("operation_unreadable", operation=id, error=type(error).__name__)
            return None

    async def list(self, *, after: tuple[int, str] | None, limit: int) -> list[Operation]:
        """Newest first, past a position (created, id)."""
        before = "+inf" if after is None else after[0]
        found: list[Operation] = []
        skipped = 0
        while len(found) < limit:
            ids = await self._link.call(
                "ZRANGE", f"{self._prefix}:all", before, "-inf", "BYSCORE", "REV", "LIMIT", skipped, limit
            )
            if not ids:
                break
            skipped += len(ids)
            for id in ids:
                operation = await self.get(id.decode())
                # of the same moment, in the order of their ids, backwards
                if operation and (after is None or (operation.created_ms, operation.id) < after):
                    found.append(operation)
        return found[:limit]

    async def open(self) -> Sequence[str]:
        """Ids of those that have not ended."""
        return sorted(id.decode() for id in await self._link.call("SMEMBERS", f"{self._prefix}:open"))

    async def hold(
        self, id: str, owner: str, lease_ms: int, *, progress: Progress | None = None, completed: int = 0
    ) -> int:
        """Take an operation in hand, or keep it, for so long; with the progress that was made. Returns the
        time (ms, by Redis's clock) at which that ends, 0 if somebody else has it or it is over."""
        arguments: list[str | int | bytes] = [id, owner, lease_ms, 0]
        if progress is not None:
            arguments += ["progress", orjson.dumps(asdict(progress)), "completed", completed]
        return int(await self._link.run(self._hold, self._prefix, arguments, durable=True))

    async def end(self, id: str, owner: str, progress: Progress, *, completed: int, error: str = "") -> bool:
        """It is over. False if it was no longer this owner's."""
        fields = ("progress", orjson.dumps(asdict(progress)), "completed", completed, "error", error)
        arguments: list[str | int | bytes] = [id, owner, 0, 1, *fields]
        return bool(await self._link.run(self._hold, self._prefix, arguments, durable=True))


def _id_of(kind: str, principal: str, request_id: str) -> str:
    named = orjson.dumps([kind, principal, request_id])
    return hashlib.blake2b(named, digest_size=10).hexdigest()


def _order_as_json(order: Order) -> bytes:
    return orjson.dumps(
        {
            "kind": order.kind.value,
            "ids": [str(id) for id in order.ids],
            "filter": order.chosen.as_json(),
            "limit": order.limit,
            "dry_run": order.dry_run,
        }
    )


def _operation(id: str, raw: Sequence[Any]) -> Operation:
    order, principal, created, bounds, progress, completed, ended, error = raw
    asked = orjson.loads(order)
    return Operation(
        id,
        Order(
            OperationKind(asked["kind"]),
            tuple(DeliveryId.parse(text) for text in asked["ids"]),
            DeadLetterFilter.from_json(asked["filter"]),
            asked["limit"],
            asked["dry_run"],
        ),
        principal.decode(),
        int(created),
        tuple(orjson.loads(bounds)),
        Progress(**orjson.loads(progress)),
        int(completed or 0),
        int(ended or 0),
        (error or b"").decode(),
    )
