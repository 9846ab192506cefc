"""The one road to Redis: commands and scripts, many at once in one round trip.

Whatever is called in the same turn of the event loop travels in one pipeline, so that concurrent calls
share writes without knowing of each other. Nothing is repeated by itself except a script that Redis
does not know (it restarted): that one did not run. What cannot be done now raises QueueUnavailable,
within `timeout`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio.client import PubSub
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ClusterError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from fedsvc.config import Settings
from fedsvc.errors import FedsvcError, QueueUnavailable, RequestIdReused
from fedsvc.metrics import REDIS_ERRORS
from fedsvc.queue.durability import Durability
from fedsvc.queue.script import Script
from fedsvc.queue.topology import Argument, Command, connect

#: answers that say "not now": nothing was done. redis-py has classes for some codes, whose text is then
#: without the code, and leaves others in the text.
_REFUSED: Final = (
    OutOfMemoryError, ReadOnlyError, ClusterError, ClusterDownError, MovedError, TryAgainError, AskError,
    NoPermissionError, NoScriptError,
)  # fmt: skip
_REFUSALS: Final = ("MISCONF", "NOREPLICAS", "BUSY", "UNKILLABLE")
#: how uvloop's RuntimeError ends of a connection that was closed a moment ago, which asyncio's loop writes to
_CLOSED: Final = "the handler is closed"


@dataclass(slots=True)
class _Item:
    command: Command
    script: Script | None
    durable: bool
    future: asyncio.Future[Any] = field(init=False)


class Link:
    """Use one per event loop. `close()` when done."""

    #: commands in one pipeline, at most
    MAX_BATCH: Final = 512
    #: pipelines on their way at the same time, at most
    MAX_FLIGHTS: Final = 16
    #: pipelines on their way, from which on the next one waits some seconds for company, if nothing else is
    #: asked for: each costs both sides more than a command in it, and what waits behind others in Redis is
    #: not done later for that
    BUSY: Final = 2
    LINGER: Final = 0.001

    def __init__(self, url: str, *, timeout: float = 5.0, busy: int = BUSY, linger: float = LINGER) -> None:
        """`timeout`: seconds within which Redis must answer. Raises ConfigurationError for a bad URL."""
        self._busy, self._linger = busy, linger
        self._topology = connect(url, timeout=timeout, connections=self.MAX_FLIGHTS + 8)
        #: when a durable write counts: see durability.py
        self.durability = Durability()
        self._waiting: deque[_Item] = deque()
        self._flights: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closed = False

    @classmethod
    def from_settings(cls, settings: Settings, *, busy: int = BUSY, linger: float = LINGER) -> Link:
        return cls(settings.redis_url, timeout=settings.redis_timeout, busy=busy, linger=linger)

    async def now_ms(self) -> int:
        """Redis's time, milliseconds since the epoch. Raises as futures of `call` do."""
        seconds, micros = await self.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def pubsub(self) -> PubSub:
        """For subscriptions. What it does raises exceptions for which `is_away` holds."""
        return self._topology.pubsub()

    async def everywhere(self, *command: Argument) -> list[Any]:
        """What each master answers: one, or several in a cluster. Raises as futures of `call` do."""
        try:
            return await self._topology.everywhere(command)
        except Exception as error:  # noqa: BLE001 - it becomes one of ours
            raise _translate(error) from None

    def call(self, *command: Argument) -> asyncio.Future[Any]:
        """One command. The future raises QueueUnavailable, or FedsvcError for an answer that is a bug."""
        return self._add(_Item(command, None, False))

    def run(
        self, script: Script, key: str, args: Sequence[Argument] = (), *, durable: bool = False
    ) -> asyncio.Future[Any]:
        """One script on the partition whose prefix is `key`. If `durable`, its answer waits until what it
        wrote is as safe as FEDSVC_DURABILITY says; QueueUnavailable if that takes too long."""
        return self._add(_Item(("EVALSHA", script.sha, 1, key, *args), script, durable))

    def _add(self, item: _Item) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._closed:
            future.set_exception(QueueUnavailable("the connection to Redis is closed"))
            return future
        item.future = future
        self._waiting.append(item)
        self._schedule()
        return future

    def _schedule(self) -> None:
        if self._scheduled or len(self._flights) >= self.MAX_FLIGHTS:
            return
        self._scheduled = True
        if len(self._flights) < self._busy:
            self._depart()
        else:
            asyncio.get_running_loop().call_later(self._linger, self._depart)

    def _depart(self) -> None:
        """Takes along what waits when it leaves, which is in the next turn of the loop."""
        flight = asyncio.get_running_loop().create_task(self._fly())
        self._flights.add(flight)
        flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        if self._waiting and not self._closed:
            self._schedule()

    async def _fly(self) -> None:
        self._scheduled = False
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.MAX_BATCH))]
        if not batch:
            return
        if self._waiting:
            self._schedule()
        try:
            answers = await self._exchange(batch)
            again = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if again:
                missing = {s.sha: s for i in again if (s := batch[i].script) is not None}
                for script in missing.values():
                    await self._topology.everywhere(("SCRIPT", "LOAD", script.source))
                for i, answer in zip(again, await self._exchange([batch[i] for i in again]), strict=True):
                    answers[i] = answer
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            answers = [error] * len(batch)
        except asyncio.CancelledError:
            answers = [QueueUnavailable("the connection to Redis is closed")] * len(batch)
        failed = False
        for item, answer in zip(batch, answers, strict=True):
            problem = _translate(answer) if isinstance(answer, BaseException) else None
            failed = failed or isinstance(problem, QueueUnavailable)
            if item.future.done():  # whoever waited has given up
                continue
            if problem is not None:
                item.future.set_exception(problem)
            else:
                item.future.set_result(answer)
        if failed and not self._closed:
            REDIS_ERRORS.inc()

    async def _exchange(self, batch: Sequence[_Item]) -> list[Any]:
        confirm = self.durability.command if any(item.durable for item in batch) else None
        answers = await self._topology.exchange([item.command for item in batch], confirm)
        answers, confirmed = answers[: len(batch)], answers[len(batch) :]
        if confirm is not None and not self.durability.holds(confirmed):
            unsafe = QueueUnavailable("written, but not safe in time: repeat the call")
            for i, item in enumerate(batch):
                if item.durable and not isinstance(answers[i], BaseException):
                    answers[i] = unsafe
        return answers

    async def close(self) -> None:
        self._closed = True
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.future.done():
                waiting.future.set_exception(QueueUnavailable("the connection to Redis is closed"))
        if self._flights:
            _, late = await asyncio.wait(self._flights, timeout=1.0)
            for flight in late:
                flight.cancel()
        await self._topology.close()


def is_away(error: BaseException) -> bool:
    """Whether what redis-py raised says that Redis is not there, or does not answer as it should."""
    # Those of a cluster are no RedisError.
    known = isinstance(error, (RedisError, RedisClusterException, OSError, TimeoutError))
    return known or (isinstance(error, RuntimeError) and str(error).endswith(_CLOSED))


def _translate(error: BaseException) -> Exception:
    if isinstance(error, FedsvcError):
        return error
    text = str(error)
    if isinstance(error, ResponseError) and not isinstance(error, RedisConnectionError):
        if "REUSED" in text:
            return RequestIdReused()
        if isinstance(error, _REFUSED) or text.startswith(_REFUSALS):
            return QueueUnavailable(f"Redis refuses: {text[:200]}")
        return FedsvcError(f"Redis answered: {text[:300]}")
    if is_away(error):
        return QueueUnavailable(f"Redis does not answer: {type(error).__name__}")
    return error if isinstance(error, Exception) else QueueUnavailable(type(error).__name__)
