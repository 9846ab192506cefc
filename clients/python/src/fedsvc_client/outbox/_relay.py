"""The relay: hands rows of the outbox to fedsvc, in order, each exactly once for each request id.

    claim ──▶ call ──▶ delete
      ▲         │
      └─lease───┘  whoever dies before the delete leaves rows whose lease ends; the next relay calls again

A call that is repeated within FEDSVC_REQUEST_ID_TTL (an hour) gets the first answer, by its request id. A row
that was in hand longer ago, as no relay ran meanwhile, is looked up first: inboxes that its activity has a
delivery for, in the queue or in the archive, are not sent to again."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from fedsvc_client._arguments import seconds
from fedsvc_client._bell import Bell
from fedsvc_client._exceptions import (
    ClientClosed,
    ConfigurationError,
    FedsvcError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RequestIdReused,
    ResourceExhausted,
    Unavailable,
)
from fedsvc_client._sync import FedsvcClient
from fedsvc_client._types import ItemError
from fedsvc_client.outbox._claims import Claims, Row
from fedsvc_client.outbox._table import Outbox, now_ms

log = logging.getLogger("fedsvc_client.outbox")

#: seconds between two tries of a row, and of a server that is away: the first, and the longest
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
LONGEST_OUTAGE_PAUSE = 30.0
#: seconds between two times that what was put aside long ago is deleted
_CLEAN_EVERY = 3600.0
#: reasons for which an activity is refused now and taken later
_OVERLOAD = frozenset({"ORIGIN_BACKLOG", "CALLER_BACKLOG", "RATE_LIMITED", "OVERLOADED"})


#: what reading a row, and making a call of it, raises if it is not as we write them
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError)


class _Stop(Exception):
    """The server takes nothing now, whatever the row."""


@dataclass(frozen=True)
class Round:
    """What became of the rows that one round claimed."""

    claimed: int = 0
    #: deleted: fedsvc has them
    sent: int = 0
    put_aside: int = 0
    #: given back, to be tried again
    later: int = 0


class Relay:
    """Several may run at once, in threads, processes or on machines: each row has one at a time."""

    def __init__(
        self,
        engine: Engine,
        client: FedsvcClient,
        outbox: Outbox | None = None,
        *,
        keys: Callable[[str], str | None] | None = None,
        batch: int = 10,
        lanes: int = 50,
        depth: int = 20,
        lease: float = 60.0,
        max_attempts: int = 8,
        keep_aside: timedelta = timedelta(days=30),
        doubt_after: float = 3000.0,
    ) -> None:
        """`keys(key_id)` finds a private key in PEM; without it, or where it gives None, the server must keep
        one of that id. `batch`: rows in one call (at most the server's MAX_BATCH_SIZE). `lanes`, `depth`: how
        many rows are claimed at once. `lease`: seconds after which others take over what a relay that died
        had claimed; longer than the client's timeout. `max_attempts`: for a row that fails although the
        server works; then it is put aside, and after `keep_aside` deleted. `doubt_after`: seconds since a row
        was first in hand, after which it is looked up before it is sent; less than the server's
        FEDSVC_REQUEST_ID_TTL."""
        if min(batch, lanes, depth, max_attempts) < 1:  # it would send nothing, and not say so
            raise InvalidRequest("batch, lanes, depth and max_attempts are at least 1")
        if seconds("lease", lease) <= client.timeout:
            raise ValueError(
                f"a lease of {lease:g} s is not longer than the client's timeout, {client.timeout:g} s"
            )
        self._client, self._outbox, self._keys = client, outbox or Outbox(), keys
        self._batch, self._lanes, self._depth = batch, lanes, depth
        self._lease, self._max_attempts = lease, max_attempts
        self._keep_aside, self._doubt_after = keep_aside, doubt_after
        self._claims = Claims(engine, self._outbox.table, int(lease * 1000))
        self._stopping, self._stopped, self._woken = False, Bell(), Bell()
        self._thread: threading.Thread | None = None
        self._cleaned = float("-inf")

    def run(self, *, poll: float = 0.5, until_empty: bool = False) -> Round:
        """Until `stop`, or until nothing is due; in this thread. Waits for server and database when they are
        away, and `poll` seconds when there is nothing to do. Returns all rounds together. Raises
        ConfigurationError for files of TLS that are bad, ClientClosed if somebody has closed the client."""
        total, pause, poll = Round(), FIRST_PAUSE, seconds("poll", poll)
        while not self._stopping:
            try:
                done = self.run_once()
            except (Unavailable, PermissionDenied, SQLAlchemyError) as error:
                text = str(error) if isinstance(error, FedsvcError) else type(error).__name__
                log.warning("nothing can be sent, next try in %.1f s: %s", pause, text)
                self._stopped.wait(pause)
                pause = min(pause * 2, LONGEST_OUTAGE_PAUSE)
                continue
            pause = FIRST_PAUSE
            total = Round(*(a + b for a, b in zip(_figures(total), _figures(done))))
            if not done.claimed:
                if until_empty:
                    return total
                self._woken.wait(poll)
        return total

    def start(self, *, poll: float = 0.5) -> None:
        """`run` in a thread, which ends with the process or with `stop`. Not before a process forks."""
        self._thread = threading.Thread(
            target=self.run, kwargs={"poll": seconds("poll", poll)}, name="fedsvc-outbox", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End `run` after the call that is under way. What it has not sent is given back. May be called by
        any thread, and by a signal handler."""
        self._stopping = True
        self._stopped.ring()
        self._woken.ring()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def wake(self) -> None:
        """Look now: something was committed."""
        self._woken.ring()

    def run_once(self) -> Round:
        """Claim some rows and send them. Raises Unavailable if the server cannot be reached, PermissionDenied
        if it does not know the token, ConfigurationError for files of TLS that are bad, ClientClosed, and
        SQLAlchemyError; rows are then as they were."""
        if time.monotonic() - self._cleaned > _CLEAN_EVERY:
            self._claims.forget(now_ms() - int(self._keep_aside.total_seconds() * 1000))
            self._cleaned = time.monotonic()
        end = time.monotonic() + self._lease
        rows = self._claims.take(self._lanes, self._depth)
        return _Sending(self, rows, end).run() if rows else Round()


def _figures(done: Round) -> tuple[int, int, int, int]:
    return done.claimed, done.sent, done.put_aside, done.later


class _Sending:
    """One claim on its way to the server."""

    def __init__(self, relay: Relay, rows: Sequence[Row], end: float) -> None:
        self._relay, self._claims, self._client = relay, relay._claims, relay._client
        self._rows, self._end, self._owner = rows, end, rows[0].lease_owner
        self._lanes: dict[str, deque[Row]] = {}
        for row in rows:
            self._lanes.setdefault(row.lane, deque()).append(row)
        self._left = {row.id for row in rows}
        self._counts = {"sent": 0, "put_aside": 0, "later": 0}
        self._pems: dict[str, str | None] = {}
        self._accepted: list[int] = []

    def run(self) -> Round:
        try:
            # A call takes at most the client's timeout: begun before that, it ends within the lease. One is
            # made in any case, so that a slow machine gets on too; if others take over meanwhile, they call
            # under the same names.
            while self._lanes and not self._relay._stopping:
                self._step()
                if time.monotonic() + self._client.timeout > self._end:
                    break
        except _Stop as stop:
            if stop.__cause__ is not None:
                raise stop.__cause__ from None
        finally:
            self._flush()
            if self._left:
                self._counts["later"] += len(self._left)
                self._claims.give_back(self._owner, self._left)
        return Round(len(self._rows), **self._counts)

    def _step(self) -> None:
        """One call, with what may go together: of a lane at most one row to a host, as none may overtake one
        that is refused for now."""
        batch: list[Row] = []
        for lane, rows in list(self._lanes.items()):
            hosts: set[str] = set()
            while rows and len(batch) < self._relay._batch:
                row, host = rows[0], _host(rows[0])
                if row.fan_out or self._in_doubt(row):
                    if not batch:
                        self._settle(rows.popleft(), self._alone(row))
                        self._drop_if_empty(lane)
                        return
                    break
                if host in hosts:
                    break
                hosts.add(host)
                batch.append(rows.popleft())
            self._drop_if_empty(lane)
            if len(batch) >= self._relay._batch:
                break
        for row, error in zip(batch, self._together(batch)):
            self._settle(row, error)

    def _drop_if_empty(self, lane: str) -> None:
        if not self._lanes.get(lane, True):
            del self._lanes[lane]

    def _together(self, batch: list[Row]) -> list[FedsvcError | None]:
        if len(batch) == 1:
            return [self._alone(batch[0])]
        try:
            items = [{"destination": json.loads(row.inboxes)[0], **self._call(row)} for row in batch]
            told = self._client.queue_activities(items)
        except (FedsvcError, *_UNREADABLE) as error:
            self._stop_for(error)
            # One of them may be what nobody can digest.
            return [self._alone(row) for row in batch]
        errors: list[FedsvcError | None] = [None] * len(batch)
        for item in told:
            if item.error is not None:
                errors[item.index] = _from_item(item.error)
        return errors

    def _alone(self, row: Row) -> FedsvcError | None:
        """What is wrong with it; None if the server has it."""
        try:
            inboxes: list[str] = json.loads(row.inboxes)
            call = self._call(row)
            if self._in_doubt(row):
                known = self._delivered(row)
                missing = [inbox for inbox in inboxes if _plain(inbox) not in known]
                if not missing:
                    return None
                if len(missing) < len(inboxes):
                    inboxes, call["request_id"] = missing, _name_of_rest(row, missing)
            if row.fan_out:
                told = self._client.fan_out(inboxes=inboxes, **call)
                for refused in told.rejected:
                    log.error("not sent to %r: the inbox %s", refused.inbox, refused.error.message)
            else:
                self._client.queue_activity(destination=inboxes[0], **call)
        except FedsvcError as error:
            self._stop_for(error)
            return error
        except _UNREADABLE as error:  # a row that somebody else has written, or a newer version
            self._stop_for(error)
            return InvalidRequest(f"the row cannot be read: {error}", reason="INVALID_ROW")
        return None

    def _stop_for(self, error: Exception) -> None:
        """Raises _Stop for what no row is to blame for."""
        unknown = getattr(error, "reason", "") == "UNAUTHENTICATED"
        if unknown or isinstance(error, (Unavailable, ClientClosed, ConfigurationError)):
            raise _Stop from error

    def _settle(self, row: Row, error: FedsvcError | None) -> None:
        """Write down what became of one row. One that is to be tried again holds up its lane."""
        self._left.discard(row.id)
        if error is None or isinstance(error, RequestIdReused):
            # Nobody but us has used this name: the server has it, signed with another key than the call says
            # now.
            self._accepted.append(row.id)
            self._counts["sent"] += 1
            if len(self._accepted) >= self._relay._batch:
                self._flush()
            return
        overload = isinstance(error, ResourceExhausted) or error.reason in _OVERLOAD
        hopeless = error.reason.startswith("INVALID") or bool(getattr(error, "violations", ()))
        if hopeless or (not overload and row.attempts + 1 >= self._relay._max_attempts):
            log.error("put aside: %s of %s: %s", row.request_id, row.key_id, error)
            self._claims.put_aside(self._owner, row.id, _short(error))
            self._counts["put_aside"] += 1
            return
        wait = error.retry_after or min(FIRST_PAUSE * 2.0**row.attempts, LONGEST_PAUSE)
        self._claims.later(self._owner, row.id, _short(error), int(wait * 1000), counts=not overload)
        self._counts["later"] += 1
        self._lanes.pop(row.lane, None)

    def _flush(self) -> None:
        """Delete what the server has: several rows in one transaction, which costs more than a call."""
        accepted, self._accepted = self._accepted, []
        if accepted:
            self._claims.sent(self._owner, accepted)

    def _call(self, row: Row) -> dict[str, Any]:
        if row.key_id not in self._pems:
            self._pems[row.key_id] = self._pem(row.key_id)
        options: dict[str, Any] = json.loads(row.options)
        for name in ("not_before", "expire_time"):
            if name in options:
                options[name] = datetime.fromisoformat(options[name])
        return {
            **options,
            "activity": bytes(row.activity),
            "private_key": self._pems[row.key_id],
            "key_id": row.key_id,
            "request_id": row.request_id,
        }

    def _pem(self, key_id: str) -> str | None:
        try:
            return None if self._relay._keys is None else self._relay._keys(key_id)
        except SQLAlchemyError:
            raise
        except Exception as error:  # noqa: BLE001
            # What it says may quote the key.
            raise FedsvcError(f"finding the key failed: {type(error).__name__}") from None

    def _in_doubt(self, row: Row) -> bool:
        return now_ms() - row.called_ms > self._relay._doubt_after * 1000

    def _delivered(self, row: Row) -> set[str]:
        """Inboxes that the row's activity was accepted for already."""
        try:
            id = str(json.loads(row.activity).get("id", ""))
            return {_plain(delivery.inbox) for delivery in self._client.iterate_deliveries(id)}
        except NotFound:
            return set()
        except (ValueError, AttributeError):  # no JSON, or no object: the server says so better
            return set()


def _from_item(error: ItemError) -> FedsvcError:
    """As a call of its own would have failed, which says which field is meant."""
    reason, field = error.reason, _ITEM.sub("", error.field)
    message = f"{field}: {error.message}" if field else error.message
    if reason == "REQUEST_ID_REUSED":
        return RequestIdReused(message, reason=reason)
    return (ResourceExhausted if reason in _OVERLOAD else FedsvcError)(message, reason=reason)


#: what an item is called in the call of several
_ITEM = re.compile(r"^requests\[\d+\]\.?")


def _short(error: FedsvcError) -> str:
    found: Iterable[Any] = getattr(error, "violations", ())
    text = "; ".join(f"{v.field}: {v.description}" for v in found) or str(error)
    return f"{error.reason}: {text}"[:1000] if error.reason else text[:1000]


def _name_of_rest(row: Row, missing: Sequence[str]) -> str:
    """Under which these inboxes of a row are called: one of their own, as a call of fewer is another call."""
    return hashlib.sha256("\n".join([row.request_id, *missing]).encode()).hexdigest()


def _host(row: Row) -> str:
    try:
        return urlsplit(str(json.loads(row.inboxes)[0])).hostname or ""
    except _UNREADABLE:
        return ""


def _plain(inbox: str) -> str:
    """An inbox as the server writes it, as far as case and port of its host go."""
    try:
        parts = urlsplit(inbox)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return inbox
    shown = f":{port}" if port and port != {"https": 443, "http": 80}.get(parts.scheme) else ""
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{host}{shown}{parts.path or '/'}{query}"
