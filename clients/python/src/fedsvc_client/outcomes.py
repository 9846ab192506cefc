"""What became of deliveries, told to the application once at least, also across restarts.

    consumer = OutcomeConsumer(client, handle, FileCursor("/var/lib/app/fedsvc.cursor"))
    consumer.run()          # until stop() is called, by a signal handler or another thread

`handle` is called with one `OutcomeEvent` after the other, in the order in which they come from the server.
The cursor is stored after it has returned. Whoever dies in between is told the same again: **at least once**,
so `handle` must be idempotent, as setting a flag is. Nothing is told twice in order, and nothing is left out;
what the server's Redis has forgotten meanwhile comes out of its archive."""

from __future__ import annotations

import _thread
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from fedsvc_client._arguments import several
from fedsvc_client._bell import Bell
from fedsvc_client._exceptions import InvalidRequest, Unavailable
from fedsvc_client._sync import FedsvcClient
from fedsvc_client._types import DeliveryState, EventType, OutcomeEvent

log = logging.getLogger("fedsvc_client.outcomes")

#: seconds between two tries to reach a server that was not there for longer than the client's timeout
LONGEST_PAUSE = 30.0


class CursorStore(Protocol):
    """Where a consumer keeps how far it has come."""

    def load(self) -> str:
        """What was saved last; empty if nothing was, which begins now."""

    def save(self, cursor: str) -> None:
        """Keep it; durable once it returns."""


class FileCursor:
    """In a file of its own, which is replaced as a whole."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def load(self) -> str:
        try:
            return self.path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            if not self.path.parent.is_dir():  # where nothing can be saved: told before there is anything to
                raise
            return ""
        except UnicodeDecodeError:
            raise InvalidRequest(f"{self.path} holds no cursor") from None

    def save(self, cursor: str) -> None:
        new = self.path.with_name(f"{self.path.name}.new")
        with new.open("w", encoding="ascii") as file:
            file.write(f"{cursor}\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        if os.name == "posix":  # that it has the name is safe when its directory is
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)


class CallableCursor:
    """Wherever two functions of the application put it."""

    def __init__(self, load: Callable[[], str | None], save: Callable[[str], None]) -> None:
        self._load, self._save = load, save

    def load(self) -> str:
        return self._load() or ""

    def save(self, cursor: str) -> None:
        self._save(cursor)


class OutcomeConsumer:
    """Tells `handle` what happens. One thread; no event loop."""

    def __init__(
        self,
        client: FedsvcClient,
        handle: Callable[[OutcomeEvent], None],
        cursor: CursorStore,
        *,
        event_types: Iterable[EventType | str] = (),
        states: Iterable[DeliveryState | str] = (),
        activity_types: Iterable[str] = (),
        hosts: Iterable[str] = (),
        save_every: int = 1,
        attempts: int = 3,
        retry_after: float = 1.0,
    ) -> None:
        """`client` is the consumer's own: `stop` closes it. Filters are as in `watch_outcomes`; empty takes
        all.

        `save_every`: events after which the cursor is saved; more are told again after a crash. `attempts`:
        how often an event is handled whose handling raises, `retry_after` seconds apart, before `run` raises
        what it has raised."""
        if save_every < 1 or attempts < 1:
            raise ValueError("save_every and attempts are at least 1")
        self._client, self._handle, self._cursor = client, handle, cursor
        self._wanted = {
            "event_types": several("event_types", event_types),
            "states": several("states", states),
            "activity_types": several("activity_types", activity_types),
            "hosts": several("hosts", hosts),
        }
        self._save_every, self._attempts, self._retry_after = save_every, attempts, retry_after
        self._stopping, self._stopped = False, Bell()
        self._at = self._saved = ""
        self._unsaved = 0

    def stop(self) -> None:
        """Make `run` return, soon. May be called by any thread, and by a signal handler."""
        self._stopping = True
        self._stopped.ring()
        # gRPC's locks may be held by the thread that a signal handler has interrupted, and so may those that
        # threading.Thread takes.
        _thread.start_new_thread(self._client.close, ())

    def run(self) -> None:
        """Until `stop`. A server that is away is waited for.

        Raises what `handle` or the store raises, and FedsvcError for what waiting does not help against, such
        as PermissionDenied, or InvalidRequest for a cursor of another queue."""
        self._at = self._saved = self._cursor.load()
        pause = 1.0
        try:
            while not self._stopping:
                begun = self._at
                try:
                    self._watch()
                except Unavailable as error:
                    pause = 1.0 if self._at != begun else min(pause * 2, LONGEST_PAUSE)
                    log.warning("outcomes cannot be watched, next try in %.0f s: %s", pause, error)
                    self._stopped.wait(pause)
        finally:
            self._save()

    def _watch(self) -> None:
        try:
            for event in self._client.watch_outcomes(self._at, **self._wanted, heartbeats=True):
                if event.type is not EventType.HEARTBEAT:
                    self._tell(event)
                    self._unsaved += 1
                self._at = event.cursor
                if self._unsaved >= self._save_every or event.type is EventType.HEARTBEAT:
                    self._save()
                if self._stopping:
                    return
        except Exception:
            # A call that `stop` has cut off ends with an error of one kind or another.
            if not self._stopping:
                raise

    def _tell(self, event: OutcomeEvent) -> None:
        for attempt in range(1, self._attempts + 1):
            try:
                self._handle(event)
                return
            except Exception as error:
                if attempt == self._attempts or self._stopping:
                    raise
                log.warning("handling %s of %s failed, again: %s", event.type, event.host, error)
                self._stopped.wait(self._retry_after)

    def _save(self) -> None:
        if self._at != self._saved:
            self._cursor.save(self._at)
            self._saved = self._at
        self._unsaved = 0
