"""Deliveries that ended, in SQL: written in batches, read by id or by activity."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, Dialect, delete, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from fedsvc.archive.engine import PING_TIMEOUT, insert_into
from fedsvc.archive.tables import deliveries
from fedsvc.archive.transaction import DataRefused, transaction
from fedsvc.domain.activity import activity_key
from fedsvc.domain.delivery import Attempt, Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.errors import ArchiveUnavailable

#: characters of the longest text that is kept
_LONGEST: Final = 4096
#: rows in one statement, on SQLite: its driver gives the interpreter's lock back for each that it runs,
#: and has to win it back from a busy event loop. A statement takes 32,766 values, those of 1,489 rows.
_TOGETHER: Final = (1024, 128, 16)
#: rows given to any other driver at once: to make them takes the event loop 2 µs each
_AT_ONCE: Final = 500
_VALUES: Final = f"({', '.join('?' * len(deliveries.c))})"
_KEY: Final = (deliveries.c.partition, deliveries.c.sequence)
#: a delivery that any database takes; its id is nobody's
_ORDINARY: Final = Delivery(
    DeliveryId(-1, -1), DeliveryState.DELIVERED, "", "", "", "", "", "", "", Priority.NORMAL
)


class Archive:
    """Safe to share. Every method raises ArchiveUnavailable if the database does not answer in time."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._upsert = _upsert(engine.dialect)
        #: the same for several rows, by how many
        self._upserts = {
            many: self._upsert.replace(_VALUES, ", ".join([_VALUES] * many))
            for many in (_TOGETHER if engine.dialect.name == "sqlite" else ())
        }

    async def record(self, outcomes: Sequence[Delivery]) -> int:
        """Write outcomes in one transaction. A batch that is written again changes nothing, and an older
        outcome never replaces a newer. Returns how many deliveries they are of.

        Raises DataRefused if the database can never hold one of them; then it has none of them."""
        newest: dict[DeliveryId, Delivery] = {}
        for outcome in outcomes:
            known = newest.get(outcome.id)
            if known is None or known.outcome < outcome.outcome:
                newest[outcome.id] = outcome
        if newest:
            async with transaction(self.engine) as connection:
                for statement, parameters in self._writes(list(newest.values())):
                    await connection.exec_driver_sql(statement, parameters)
        return len(newest)

    def _writes(self, outcomes: list[Delivery]) -> Iterator[tuple[str, Any]]:
        """Statements with their parameters, each made when the one before has been run."""
        at = 0
        for many, statement in self._upserts.items():
            while len(outcomes) - at >= many:
                yield statement, tuple(chain.from_iterable(_rows(outcomes[at : at + many])))
                at += many
        for start in range(at, len(outcomes), _AT_ONCE):
            yield self._upsert, _rows(outcomes[start : start + _AT_ONCE])

    async def get(self, id: DeliveryId, origins: Collection[str] | None = None) -> Delivery | None:
        """None if it is not here, or not of one of these origins (None: of any)."""
        query = select(deliveries).where(
            deliveries.c.partition == id.partition, deliveries.c.sequence == id.sequence, *_among(origins)
        )
        async with transaction(self.engine) as connection:
            row = (await connection.execute(query)).mappings().first()
        return None if row is None else delivery_of(row)

    async def list_by_activity(
        self,
        activity_id: str,
        *,
        after: DeliveryId | None = None,
        limit: int,
        states: Collection[DeliveryState] = (),
        origins: Collection[str] | None = None,
    ) -> list[Delivery]:
        """Deliveries of an activity by id, those past `after`; in any state if none is named, of all origins
        if None."""
        query = (
            select(deliveries).where(*self._of(activity_id), *_among(origins)).order_by(*_KEY).limit(limit)
        )
        if after is not None:
            query = query.where(tuple_(*_KEY) > tuple_(after.partition, after.sequence))
        if states:
            query = query.where(deliveries.c.state.in_([int(state) for state in states]))
        async with transaction(self.engine) as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [delivery_of(row) for row in rows]

    async def count_by_activity(
        self, activity_id: str, origins: Collection[str] | None = None
    ) -> dict[DeliveryState, int]:
        query = (
            select(deliveries.c.state, func.count())
            .where(*self._of(activity_id), *_among(origins))
            .group_by(deliveries.c.state)
        )
        async with transaction(self.engine) as connection:
            return {DeliveryState(state): n for state, n in (await connection.execute(query)).all()}

    async def attempts_of_host(
        self, host: str, *, limit: int, origins: Collection[str] | None = None
    ) -> list[tuple[DeliveryId, Attempt]]:
        """Of the deliveries to a host that ended last, `limit` of them."""
        columns = (*_KEY, deliveries.c.history)
        newest = (
            select(*columns)
            .where(deliveries.c.host == host, *_among(origins))
            .order_by(deliveries.c.completed_ms.desc())
            .limit(limit)
        )
        async with transaction(self.engine) as connection:
            rows = (await connection.execute(newest)).all()
        return [
            (DeliveryId(partition, sequence), Attempt(time, took, status, Reason(reason)))
            for partition, sequence, history in rows
            for time, took, status, reason in history
        ]

    async def takes_rows(self) -> None:
        """Raises ArchiveUnavailable if the table does not even take an ordinary delivery, as when its columns
        are not ours: then it is not the data that is bad. Leaves nothing behind."""
        try:
            async with transaction(self.engine) as connection:
                await connection.exec_driver_sql(self._upsert, _rows([_ORDINARY]))
                await connection.rollback()
        except DataRefused as error:
            raise ArchiveUnavailable(f"the table `deliveries` is not as it should be: {error}") from None

    async def purge(self, older_than_ms: Mapping[DeliveryState, int], limit: int) -> int:
        """Forget deliveries that ended in a state before its time (milliseconds since the epoch), oldest
        first, `limit` at most. Returns how many."""
        purged = 0
        async with transaction(self.engine) as connection:
            for state, before_ms in older_than_ms.items():
                if purged >= limit:
                    break
                due = (deliveries.c.state == int(state), deliveries.c.completed_ms < before_ms)
                oldest = select(*_KEY).where(*due).order_by(deliveries.c.completed_ms).limit(limit - purged)
                # The condition stands twice: a dead letter that was replayed since it was found has a newer
                # row now, which the database looks at again once it is free.
                statement = delete(deliveries).where(tuple_(*_KEY).in_(oldest), *due)
                purged += (await connection.execute(statement)).rowcount
        return purged

    async def ping(self) -> None:
        """Raises ArchiveUnavailable, after PING_TIMEOUT if the database does not say a word."""
        async with transaction(self.engine, PING_TIMEOUT) as connection:
            await connection.execute(select(deliveries.c.partition).limit(1))

    async def close(self) -> None:
        await self.engine.dispose()

    @staticmethod
    def _of(activity_id: str) -> tuple[Any, Any]:
        return deliveries.c.activity_key == activity_key(activity_id), deliveries.c.activity_id == storable(
            activity_id
        )


def _among(origins: Collection[str] | None) -> tuple[ColumnElement[bool], ...]:
    """The condition that a delivery is of one of these origins; none for all."""
    return () if origins is None else (deliveries.c.origin.in_(sorted(origins)),)


def storable(text: str) -> str:
    """PostgreSQL stores no NUL, and nothing stores half a character."""
    if text.isascii() and "\0" not in text:  # nearly all are
        return text[:_LONGEST]
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()[:_LONGEST]


def _upsert(dialect: Dialect) -> str:
    """The statement that writes a row unless a newer one is there, as the driver takes it: its parameters are
    the table's columns, in order."""
    insert = insert_into(deliveries, dialect)
    statement = insert.on_conflict_do_update(
        index_elements=list(_KEY),
        set_={c.name: insert.excluded[c.name] for c in deliveries.c if not c.primary_key},
        where=insert.excluded.outcome > deliveries.c.outcome,
    ).compile(dialect=dialect)
    columns = [column.name for column in deliveries.c]
    if list(statement.positiontup or ()) != columns:
        raise RuntimeError("the statement does not take the columns in their order")
    return str(statement)


def _rows(outcomes: Iterable[Delivery]) -> list[tuple[Any, ...]]:
    # Straight for the driver: what SQLAlchemy does to each value takes longer than all the rest.
    try:
        return [_row(outcome) for outcome in outcomes]
    except TypeError as error:
        raise DataRefused(f"the database cannot hold it: {type(error).__name__}") from None


def _row(d: Delivery) -> tuple[Any, ...]:
    """In the order of the table's columns."""
    texts: Sequence[str] = (
        d.activity_id, d.activity_type, d.actor, d.inbox, d.host, d.origin, d.key_id, d.snippet,
        d.ordering_key, d.request_id,
    )  # fmt: skip
    together = "".join(texts)
    if len(together) > _LONGEST or not together.isascii() or "\0" in together:  # few are
        texts = list(map(storable, texts))
    activity_id, activity_type, actor, inbox, host, origin, key_id, snippet, ordering_key, request_id = texts
    return (
        d.id.partition,
        d.id.sequence,
        d.outcome,
        int(d.state),
        int(d.priority),
        int(d.reason or 0),
        d.status,
        d.attempts,
        activity_key(d.activity_id),
        activity_id,
        activity_type[:64],
        actor,
        inbox,
        host[:255],
        origin[:255],
        key_id,
        snippet,
        d.expire_ms,
        d.completed_ms,
        ordering_key,
        request_id,
        orjson.dumps([(a.time_ms, a.latency_ms, a.status, int(a.reason)) for a in d.history]).decode(),
    )


def delivery_of(row: Any) -> Delivery:
    """Of a row of the table `deliveries`."""
    return Delivery(
        id=DeliveryId(row["partition"], row["sequence"]),
        state=DeliveryState(row["state"]),
        activity_id=row["activity_id"],
        activity_type=row["activity_type"],
        actor=row["actor"],
        inbox=row["inbox"],
        host=row["host"],
        origin=row["origin"],
        key_id=row["key_id"],
        priority=Priority(row["priority"]),
        attempts=row["attempts"],
        reason=Reason(row["reason"]) if row["reason"] else None,
        status=row["status"],
        snippet=row["snippet"],
        expire_ms=row["expire_ms"],
        completed_ms=row["completed_ms"],
        outcome=row["outcome"],
        ordering_key=row["ordering_key"],
        request_id=row["request_id"],
        history=tuple(
            Attempt(time, took, status, Reason(reason)) for time, took, status, reason in row["history"]
        ),
    )
