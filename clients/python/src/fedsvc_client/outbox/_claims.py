"""All SQL of the relay: rows are claimed under a lease, and end by being deleted, put aside or given back.

Rows of one lane are sent in the order of their ids. So only the first row of a lane can be claimed, and with
it come those that follow it; whoever holds the first has the lane. A lease that ends, as its relay died, lets
the next relay claim the same rows again: it calls under the same request ids, so nothing is accepted twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, func, select, update

from fedsvc_client.outbox._table import ASIDE, WAITS, now_ms


@dataclass(frozen=True)
class Row:
    """One row of the outbox, in hand."""

    id: int
    request_id: str
    lane: str
    activity: bytes
    inboxes: str
    fan_out: int
    key_id: str
    options: str
    attempts: int
    #: milliseconds since the epoch
    called_ms: int
    #: names the claim
    lease_owner: str


_COLUMNS = tuple(Row.__dataclass_fields__)


class Claims:
    """Of one relay. Each method is a transaction of its own."""

    def __init__(self, engine: Engine, table: Table, lease_ms: int) -> None:
        self._engine, self._table, self._lease_ms = engine, table, lease_ms

    def take(self, lanes: int, depth: int) -> list[Row]:
        """The next rows by id, of at most so many lanes and `depth` of each; nobody else has them until the
        lease ends."""
        owner = uuid.uuid4().hex
        with self._engine.begin() as connection:
            moment = now_ms()
            if not connection.execute(self._claim(self._heads(moment, lanes), owner, moment)).rowcount:
                return []
            t = self._table
            won = select(t.c.lane).where(t.c.lease_owner == owner)
            place = func.row_number().over(partition_by=t.c.lane, order_by=t.c.id).label("place")
            names = list(connection.scalars(won))
            rows = select(t.c.id, place).where(t.c.state == WAITS, t.c.lane.in_(names)).subquery()
            followers = select(rows.c.id).where(rows.c.place <= depth)
            connection.execute(self._claim(followers, owner, moment))
            mine = select(*(t.c[name] for name in _COLUMNS)).where(t.c.lease_owner == owner).order_by(t.c.id)
            return [Row(*values) for values in connection.execute(mine)]

    def _claim(self, ids: Any, owner: str, moment: int) -> Any:
        t = self._table
        called = func.coalesce(t.c.called_ms, moment)
        until = moment + self._lease_ms
        return (
            update(t)
            .where(t.c.id.in_(ids))
            .values(lease_owner=owner, lease_until_ms=until, called_ms=called)
            .execution_options(synchronize_session=False)
        )

    def _heads(self, moment: int, limit: int) -> Any:
        """Ids of the first rows of lanes that are free and due. Goes from one lane to the next by the index,
        so that it costs a look for each lane, however long they are."""
        t = self._table
        first = select(func.min(t.c.lane).label("lane")).where(t.c.state == WAITS)
        lanes = first.cte("lanes", recursive=True)
        beyond = select(func.min(t.c.lane)).where(t.c.state == WAITS, t.c.lane > lanes.c.lane)
        lanes = lanes.union_all(select(beyond.scalar_subquery()).where(lanes.c.lane.is_not(None)))
        head = select(func.min(t.c.id)).where(t.c.state == WAITS, t.c.lane == lanes.c.lane).scalar_subquery()
        row = t.alias("head")
        return (
            select(row.c.id)
            .where(
                row.c.id.in_(select(head).select_from(lanes)),
                row.c.state == WAITS,
                row.c.due_ms <= moment,
                row.c.lease_until_ms <= moment,
            )
            .order_by(row.c.id)
            .limit(limit)
            # Where the database has no such lock (SQLite) this says nothing, and writers take turns.
            .with_for_update(skip_locked=True, of=row)
        )

    # What a relay writes down counts while the rows are its own: one that slept past its lease must not
    # touch what others have taken over since, or a row that was given the same id (SQLite does that).

    def sent(self, owner: str, ids: Iterable[int]) -> None:
        """fedsvc has them."""
        self._run(delete(self._table).where(*self._own(owner, ids)))

    def give_back(self, owner: str, ids: Iterable[int]) -> None:
        """They were not sent; anybody may send them."""
        change = update(self._table).where(*self._own(owner, ids))
        self._run(change.values(lease_until_ms=0, lease_owner=""))

    def later(self, owner: str, id: int, reason: str, wait_ms: int, *, counts: bool) -> None:
        """Not before `wait_ms` from now, and neither what follows it in its lane."""
        t = self._table
        attempts = t.c.attempts + (1 if counts else 0)
        change = {"due_ms": now_ms() + wait_ms, "reason": reason, "attempts": attempts, "lease_until_ms": 0}
        self._run(update(t).where(*self._own(owner, [id])).values(**change, lease_owner=""))

    def put_aside(self, owner: str, id: int, reason: str) -> None:
        """Never, as it is; what follows it goes on."""
        t = self._table
        change = {"state": ASIDE, "reason": reason, "aside_ms": now_ms(), "lease_until_ms": 0}
        mine = update(t).where(*self._own(owner, [id]))
        self._run(mine.values(**change, attempts=t.c.attempts + 1, lease_owner=""))

    def _own(self, owner: str, ids: Iterable[int]) -> tuple[Any, Any]:
        return self._table.c.id.in_(list(ids)), self._table.c.lease_owner == owner

    def forget(self, older_than_ms: int) -> int:
        """Delete what was put aside before. Returns how many."""
        t = self._table
        return self._run(delete(t).where(t.c.state == ASIDE, t.c.aside_ms < older_than_ms))

    def _run(self, statement: Any) -> int:
        with self._engine.begin() as connection:
            return self._execute(connection, statement)

    @staticmethod
    def _execute(connection: Connection, statement: Any) -> int:
        return int(connection.execute(statement).rowcount)
