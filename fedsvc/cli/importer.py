"""Takes rows of PieFed's `send_queue` over, in order: what may go together, what waits, how far it is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import click

from fedsvc.errors import ConfigurationError

if TYPE_CHECKING:
    from fedsvc_client import BatchItem, FedsvcClient, ItemError, QueuedActivity

    from fedsvc.archive.send_queue import SendQueue, SendQueueRow

#: rows read at a time, and in one call
_PAGE, _BATCH = 500, 10
#: seconds between two lines of progress; between two tries of what an overloaded server does not take, and
#: for how long
_TELL_EVERY, _PAUSE = 1.0, 1.0
#: reasons for which a row is refused now and taken later
_OVERLOAD: Final = frozenset({"ORIGIN_BACKLOG", "CALLER_BACKLOG", "RATE_LIMITED", "OVERLOADED"})


@dataclass
class Progress:
    """How far an import has come; a file, so that another run goes on."""

    path: Path | None
    source: str
    #: id of the last row that was dealt with
    through: int = 0
    #: row -> what is wrong with it
    failed: dict[int, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, source: str) -> Progress:
        """Raises ConfigurationError if it is of another import."""
        try:
            found = json.loads(path.read_text())
            progress = cls(
                path, found["source"], found["through"], {int(k): v for k, v in found["failed"].items()}
            )
        except FileNotFoundError:
            return cls(path, source)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigurationError("--state", f"{path} holds no progress of an import") from None
        if progress.source != source:
            raise ConfigurationError("--state", f"{path} is of another database or table: name another file")
        return progress

    def save(self) -> None:
        if self.path is not None:
            new = self.path.with_name(f"{self.path.name}.new")
            told = {"source": self.source, "through": self.through, "failed": self.failed}
            new.write_text(json.dumps(told))
            new.replace(self.path)


@dataclass
class Imported:
    """What is told at the end."""

    dry_run: bool
    imported: int = 0
    #: fedsvc had them already, of an earlier run or from the application
    duplicates: int = 0
    #: PieFed would not have sent them any more
    skipped: int = 0
    #: of those imported, how many wait for their `send_after`
    scheduled: int = 0
    through: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    hosts: int = 0
    types: dict[str, int] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """As --json says it: a dry run has imported nothing."""
        name = "would_import" if self.dry_run else "imported"
        return {name if key == "imported" else key: value for key, value in asdict(self).items()}


class Good(NamedTuple):
    """A row that can be sent, as far as one can see."""

    row: SendQueueRow
    host: str
    kind: str


class Importer(ABC):
    """Goes through the table once."""

    def __init__(self, queue: SendQueue, progress: Progress, told: Imported) -> None:
        self.queue = queue
        self._progress, self._told = progress, told
        self._hosts: set[str] = set()
        self._types: Counter[str] = Counter()
        self._told_at = 0.0

    def _problem(self, row: SendQueueRow) -> str:
        """What is known beforehand to be wrong with a row that looks well; empty if it is nothing."""
        return ""

    @abstractmethod
    async def _take(self, batch: Sequence[Good]) -> None:
        """These go together, each to a host of its own."""

    async def run(self) -> None:
        again = sorted(self._progress.failed)
        total = await self.queue.count(self._progress.through) + len(again)
        for start in range(0, len(again), _PAGE):
            ids = again[start : start + _PAGE]
            rows = await self.queue.among(ids)
            for gone in set(ids) - {row.id for row in rows}:
                del self._progress.failed[gone]
            await self._page(rows, total)
        while rows := await self.queue.after(self._progress.through, _PAGE):
            await self._page(rows, total)
        self._told.failed = [{"id": id, "reason": why} for id, why in sorted(self._progress.failed.items())]
        self._told.hosts, self._told.types = len(self._hosts), dict(self._types.most_common())

    async def _page(self, rows: list[SendQueueRow], total: int) -> None:
        batch: dict[str, Good] = {}
        for row in rows:
            wrong, kind = _seen(row)
            wrong = wrong or self._problem(row)
            if row.retries > row.max_retries:
                self._told.skipped += 1
                self._progress.failed.pop(row.id, None)
            elif wrong:
                self._progress.failed[row.id] = wrong
            else:
                host = urlsplit(row.destination).hostname or ""
                if host in batch or len(batch) == _BATCH:
                    # None to a host may overtake one that is refused for now.
                    await self._send(batch)
                    batch = {}
                batch[host] = Good(row, host, kind)
        await self._send(batch)
        self._reached(rows[-1].id if rows else 0)
        self._tell(total)

    async def _send(self, batch: dict[str, Good]) -> None:
        now = datetime.now(UTC)
        for row, _, _ in batch.values():
            self._told.scheduled += row.send_after is not None and row.send_after > now
        await self._take(list(batch.values()))

    def _count(self, host: str, kind: str) -> None:
        """One that a server has, or would have."""
        self._hosts.add(host)
        self._types[kind] += 1

    def _reached(self, id: int) -> None:
        self._progress.through = self._told.through = max(id, self._progress.through)
        self._progress.save()

    def _tell(self, total: int) -> None:
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY:
            self._told_at = now
            done = (
                self._told.imported + self._told.duplicates + self._told.skipped + len(self._progress.failed)
            )
            click.echo(f"{done:,} of {total:,}", err=True)


class Import(Importer):
    """Has a server take what it can."""

    def __init__(
        self,
        queue: SendQueue,
        progress: Progress,
        told: Imported,
        client: FedsvcClient,
        *,
        remove: bool,
        patience: float,
    ) -> None:
        super().__init__(queue, progress, told)
        self._client = client
        self._remove, self._patience = remove, patience
        #: by the server's clock
        self._begun: datetime | None = None

    async def run(self) -> None:
        self._begun = self._client.get_queue_stats().read_time
        await super().run()

    async def _take(self, batch: Sequence[Good]) -> None:
        end = time.monotonic() + self._patience
        left = [good.row for good in batch]
        while left:
            answers = _call(self._client, left)
            taken, waiting = [], []
            for row, answer in zip(left, answers, strict=True):
                if answer.queued is not None:
                    taken.append(row.id)
                    known = self._was_there(answer.queued)
                    self._told.duplicates += known
                    self._told.imported += not known
                    self._count(answer.queued.delivery.host, answer.queued.delivery.activity_type)
                    self._progress.failed.pop(row.id, None)
                elif answer.error is not None and answer.error.reason in _OVERLOAD:
                    waiting.append(row)
                elif answer.error is not None:
                    self._progress.failed[row.id] = _refusal(answer.error)
            if self._remove:
                await self.queue.delete(taken)
            if waiting and time.monotonic() >= end:
                raise click.ClickException(
                    "the server takes no more for now: run it again later, it goes on here"
                )
            if waiting:
                await asyncio.sleep(_PAUSE)
            left = waiting
        if batch:
            self._reached(batch[-1].row.id)

    def _was_there(self, queued: QueuedActivity) -> bool:
        """Accepted before this run: for another call, or for the same, which gets its first answer again."""
        accepted = queued.delivery.accept_time
        return queued.duplicate or bool(self._begun and accepted and accepted < self._begun)


def _seen(row: SendQueueRow) -> tuple[str, str]:
    """Why a row cannot be sent, empty if it can; and the type of its activity."""
    if not row.destination:
        return "destination is empty", ""
    if not row.key_id:
        return "actor, the id of the key, is empty", ""
    try:
        payload = json.loads(row.payload.encode())
    except ValueError:
        return "payload is no JSON", ""
    if not isinstance(payload, dict) or not isinstance(payload.get("id"), str):
        return "payload is no activity with an id", ""
    return "", str(payload.get("type", ""))


def _call(client: FedsvcClient, rows: list[SendQueueRow]) -> list[BatchItem]:
    """The answers to rows that are sent together; one by one if the server does not take so many. A call that
    it has no room for is one for none of them."""
    from fedsvc_client import BatchItem, InvalidRequest, ItemError, ResourceExhausted

    try:
        return client.queue_activities([_item(row) for row in rows])
    except ResourceExhausted as error:  # such as by FEDSVC_CALLER_CALLS
        if error.reason not in _OVERLOAD:
            raise
        refusal = ItemError(error.reason, str(error), "")
        return [BatchItem(index, None, refusal) for index in range(len(rows))]
    except InvalidRequest:
        if len(rows) == 1:
            raise
        return [answer for row in rows for answer in _call(client, [row])]


def _refusal(error: ItemError) -> str:
    """Without the item's place in the call, which the row's number replaces."""
    field = error.field.rpartition("].")[2]
    return f"{error.reason}: {field} {error.message}" if field else f"{error.reason}: {error.message}"


def _item(row: SendQueueRow) -> dict[str, Any]:
    """As a call says it. A row keeps its name, whichever run brings it."""
    content = hashlib.sha256(f"{row.destination}\n{row.created}\n{row.payload}".encode()).hexdigest()[:16]
    return {
        "activity": row.payload.encode(),
        "destination": row.destination,
        "private_key": row.private_key or None,
        "key_id": row.key_id,
        "not_before": row.send_after,
        "request_id": f"send_queue/{row.id}/{content}",
    }
