"""The table, and what the application does with it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    func,
    select,
    update,
)

from fedsvc_client import _wire
from fedsvc_client._arguments import LONGEST_REQUEST_ID, inbox_list, named, optional_text, whole_text
from fedsvc_client._exceptions import InvalidRequest
from fedsvc_client._types import Priority

#: states of a row: it waits for the relay; it was put aside, and `reason` says why
WAITS, ASIDE = 0, 1


def now_ms() -> int:
    """Milliseconds since the epoch, by this machine's clock."""
    return int(time.time() * 1000)


@dataclass(frozen=True)
class PutAside:
    """An activity that fedsvc will not take as it is."""

    id: int
    request_id: str
    inboxes: tuple[str, ...]
    key_id: str
    attempts: int
    reason: str


@dataclass(frozen=True)
class Status:
    waiting: int
    put_aside: int
    #: how long the oldest row waits that is to be sent
    oldest_age: timedelta


class Outbox:
    """Activities that wait to be handed to fedsvc, in the application's database."""

    def __init__(
        self, metadata: MetaData | None = None, name: str = "fedsvc_outbox", schema: str | None = None
    ) -> None:
        """`metadata`: the application's, so that its migrations and `create_all` know the table."""
        self.table = Table(
            name,
            MetaData() if metadata is None else metadata,
            Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
            Column("request_id", String(LONGEST_REQUEST_ID), nullable=False, unique=True),
            # whose rows are sent one after the other: a hash of the ordering key, or of the key id
            Column("lane", String(64), nullable=False),
            Column("activity", LargeBinary, nullable=False),
            # a list in JSON
            Column("inboxes", Text, nullable=False),
            Column("fan_out", SmallInteger, nullable=False),
            Column("key_id", Text, nullable=False),
            # what else the call says, in JSON
            Column("options", Text, nullable=False),
            Column("state", SmallInteger, nullable=False),
            Column("attempts", Integer, nullable=False),
            # all times are milliseconds since the epoch
            Column("created_ms", BigInteger, nullable=False),
            Column("due_ms", BigInteger, nullable=False),
            Column("lease_until_ms", BigInteger, nullable=False),
            Column("lease_owner", String(64), nullable=False),
            # when a relay first took it in hand: from then on the server may have it
            Column("called_ms", BigInteger),
            Column("aside_ms", BigInteger),
            Column("reason", Text, nullable=False),
            Index(f"ix_{name}_state_lane_id", "state", "lane", "id"),
            Index(f"ix_{name}_lease_owner", "lease_owner"),
            schema=schema,
        )

    def queue_activity(
        self,
        session: Any,
        activity: _wire.Activity,
        destination: str,
        *,
        key_id: str,
        priority: Priority | str | None = None,
        not_before: datetime | None = None,
        expire_time: datetime | None = None,
        ordering_key: str = "",
        supersede_key: str = "",
        content_type: str = "",
        shared_inbox: bool = False,
        integrity_proof: bool = False,
        request_id: str | None = None,
    ) -> str:
        """Write in `session`'s transaction that `activity` is to go to the inbox `destination`. Returns the
        request id under which the relay hands it over: name one yourself, and the same is written once only,
        a second time being an IntegrityError.

        `session`: a Session, scoped_session or Connection of SQLAlchemy; it is not committed here. The rest
        is as in FedsvcClient.queue_activity. Raises InvalidRequest for what cannot be sent: what is no JSON,
        no text, or no priority."""
        options = self._options(
            priority, not_before, expire_time, ordering_key, supersede_key, content_type, shared_inbox,
            integrity_proof,
        )  # fmt: skip
        inboxes = [whole_text("destination", destination)]
        return self._write(session, activity, inboxes, False, key_id, ordering_key, options, request_id)

    def fan_out(
        self,
        session: Any,
        activity: _wire.Activity,
        inboxes: Iterable[str],
        *,
        key_id: str,
        priority: Priority | str | None = None,
        not_before: datetime | None = None,
        expire_time: datetime | None = None,
        ordering_key: str = "",
        supersede_key: str = "",
        content_type: str = "",
        shared_inbox: bool = False,
        integrity_proof: bool = False,
        request_id: str | None = None,
    ) -> str:
        """As `queue_activity`, to many inboxes in one row. At most 50,000."""
        options = self._options(
            priority, not_before, expire_time, ordering_key, supersede_key, content_type, shared_inbox,
            integrity_proof,
        )  # fmt: skip
        found = inbox_list(inboxes)
        return self._write(session, activity, found, True, key_id, ordering_key, options, request_id)

    def status(self, session: Any) -> Status:
        """How many rows there are, and how long the oldest waits."""
        t = self.table
        rows = session.execute(select(t.c.state, func.count(), func.min(t.c.created_ms)).group_by(t.c.state))
        found = {state: (count, oldest) for state, count, oldest in rows}
        waiting, oldest = found.get(WAITS, (0, None))
        age = timedelta(milliseconds=max(0, now_ms() - oldest) if oldest else 0)
        return Status(waiting, found.get(ASIDE, (0, None))[0], age)

    def put_aside(self, session: Any, limit: int = 100) -> list[PutAside]:
        """The first of the rows that were put aside."""
        t = self.table
        columns = (t.c.id, t.c.request_id, t.c.inboxes, t.c.key_id, t.c.attempts, t.c.reason)
        rows = session.execute(select(*columns).where(t.c.state == ASIDE).order_by(t.c.id).limit(limit))
        return [PutAside(r[0], r[1], tuple(json.loads(r[2])), *r[3:]) for r in rows]

    def retry(self, session: Any, ids: Iterable[int] | None = None) -> int:
        """Let rows that were put aside be sent after all; all of them if `ids` is None. Returns how many."""
        t = self.table
        which = [t.c.state == ASIDE] + ([] if ids is None else [t.c.id.in_(list(ids))])
        # Under a name that the server has not heard yet the same row would be another call.
        again = update(t).where(*which).values(state=WAITS, attempts=0, due_ms=0, aside_ms=None)
        return int(session.execute(again).rowcount)

    def _write(
        self,
        session: Any,
        activity: _wire.Activity,
        inboxes: list[str],
        fan_out: bool,
        key_id: str,
        ordering_key: str,
        options: dict[str, Any],
        request_id: str | None,
    ) -> str:
        if not key_id or not inboxes:
            raise InvalidRequest("key_id is required" if inboxes else "there is no inbox to send to")
        request_id = named(request_id)
        for name, text in (("key_id", whole_text("key_id", key_id)), ("request_id", request_id)):
            # The database would say so with an error that ends the application's transaction.
            if "\0" in text:
                raise InvalidRequest(f"{name} has a NUL, which no {name} has")
        if len(request_id) > LONGEST_REQUEST_ID:
            raise InvalidRequest(f"request_id has more than {LONGEST_REQUEST_ID} characters")
        order = f"order {ordering_key}" if ordering_key else f"key {key_id}"
        moment = now_ms()
        written = session.execute(
            self.table.insert().values(
                request_id=request_id,
                lane=hashlib.sha256(order.encode()).hexdigest(),
                activity=_wire.activity_bytes(activity),
                inboxes=json.dumps(inboxes),
                fan_out=int(fan_out),
                key_id=key_id,
                options=json.dumps(options),
                state=WAITS,
                attempts=0,
                created_ms=moment,
                due_ms=moment,
                lease_until_ms=0,
                lease_owner="",
                reason="",
            )
        )
        if isinstance(written, Coroutine):  # which nobody would await: the activity would be lost
            written.close()
            raise InvalidRequest("session is one of asyncio: give what its run_sync gives a function")
        return request_id

    @staticmethod
    def _options(
        priority: Priority | str | None,
        not_before: datetime | None,
        expire_time: datetime | None,
        ordering_key: str,
        supersede_key: str,
        content_type: str,
        shared_inbox: bool,
        integrity_proof: bool,
    ) -> dict[str, Any]:
        """What is not as usual, as JSON can say it. Raises InvalidRequest."""
        _wire.priority_named(priority)
        for name, when in (("not_before", not_before), ("expire_time", expire_time)):
            _wire.timestamp_of(name, when)
        given = {
            "priority": None if priority is None else str(priority).upper(),
            "not_before": None if not_before is None else not_before.isoformat(),
            "expire_time": None if expire_time is None else expire_time.isoformat(),
            "ordering_key": ordering_key,
            "supersede_key": supersede_key,
            "content_type": content_type,
            "shared_inbox": shared_inbox,
            "integrity_proof": integrity_proof,
        }
        for name in ("ordering_key", "supersede_key", "content_type"):
            optional_text(name, given[name])
        return {name: value for name, value in given.items() if value}
