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
from typing import Any, Final

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError, FedsvcError, QueueUnavailable, RequestIdReused
from fedsvc.queue.script import Script

#: answers that say "not now": nothing was done. redis-py has classes for some codes, whose text is then
#: without the code, and leaves others in the text.
_REFUSED: Final = (
    OutOfMemoryError, ReadOnlyError, ClusterError, TryAgainError, AskError, NoPermissionError, NoScriptError,
)  # fmt: skip
_REFUSALS: Final = ("MISCONF", "NOREPLICAS", "BUSY", "UNKILLABLE")
Argument = str | bytes | int | float


class Link:
    """Use one per event loop. `close()` when done."""

    #: commands in one pipeline, at most
    MAX_BATCH: Final = 512
    #: pipelines on their way at the same time, at most
    MAX_FLIGHTS: Final = 16

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        """`timeout`: seconds within which Redis must answer."""
        # A unix socket has no keep-alive, and redis-py refuses to be asked for one.
        tcp: dict[str, Any] = {} if url.startswith("unix:") else {"socket_keepalive": True}
        try:
            self._redis: aioredis.Redis = aioredis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(NoBackoff(), 0),
                max_connections=self.MAX_FLIGHTS + 8,
                protocol=2,
                **tcp,
            )
        except ValueError:  # its text may hold parts of the password
            raise ConfigurationError("REDIS_URL", "is not a redis://, rediss:// or unix:// URL") from None
        # Answers are read as Redis gives them: what redis-py makes of them depends on its version.
        self._redis.response_callbacks.clear()
        self._waiting: deque[tuple[tuple[Argument, ...], Script | None, asyncio.Future[Any]]] = deque()
        self._flights: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closed = False

    @classmethod
    def from_settings(cls, settings: Settings) -> Link:
        return cls(settings.redis_url, timeout=settings.redis_timeout)

    @property
    def redis(self) -> aioredis.Redis:
        """For subscriptions and rare commands."""
        return self._redis

    def call(self, *command: Argument) -> asyncio.Future[Any]:
        """One command. The future raises QueueUnavailable, or FedsvcError for an answer that is a bug."""
        return self._add(command, None)

    def run(self, script: Script, key: str, args: Sequence[Argument] = ()) -> asyncio.Future[Any]:
        """One script on the partition whose prefix is `key`."""
        return self._add(("EVALSHA", script.sha, 1, key, *args), script)

    def _add(self, command: tuple[Argument, ...], script: Script | None) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._closed:
            future.set_exception(QueueUnavailable("the connection to Redis is closed"))
            return future
        self._waiting.append((command, script, future))
        if not self._scheduled and len(self._flights) < self.MAX_FLIGHTS:
            self._scheduled = True
            loop.call_soon(self._depart)
        return future

    def _depart(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._flights) < self.MAX_FLIGHTS:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.MAX_BATCH))]
            flight = asyncio.get_running_loop().create_task(self._fly(batch))
            self._flights.add(flight)
            flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        if self._waiting and not self._scheduled:
            self._depart()

    async def _fly(
        self, batch: list[tuple[tuple[Argument, ...], Script | None, asyncio.Future[Any]]]
    ) -> None:
        try:
            answers = await self._exchange([command for command, _, _ in batch])
            missing = {s.sha: s for (_, s, _), a in zip(batch, answers, strict=True)
                       if s is not None and isinstance(a, NoScriptError)}  # fmt: skip
            if missing:
                await self._exchange([("SCRIPT", "LOAD", s.source) for s in missing.values()])
                again = [i for i, a in enumerate(answers) if isinstance(a, NoScriptError)]
                for i, answer in zip(again, await self._exchange([batch[i][0] for i in again]), strict=True):
                    answers[i] = answer
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            answers = [error] * len(batch)
        except asyncio.CancelledError:
            answers = [QueueUnavailable("the connection to Redis is closed")] * len(batch)
        for (_, _, future), answer in zip(batch, answers, strict=True):
            if future.done():  # whoever waited has given up
                continue
            if isinstance(answer, BaseException):
                future.set_exception(_translate(answer))
            else:
                future.set_result(answer)

    async def _exchange(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))

    async def close(self) -> None:
        self._closed = True
        while self._waiting:
            _, _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(QueueUnavailable("the connection to Redis is closed"))
        if self._flights:
            _, late = await asyncio.wait(self._flights, timeout=1.0)
            for flight in late:
                flight.cancel()
        await self._redis.aclose()


def _translate(error: BaseException) -> Exception:
    if isinstance(error, FedsvcError):
        return error
    text = str(error)
    if isinstance(error, ResponseError) and not isinstance(error, RedisConnectionError):
        if "REUSED" in text:
            return RequestIdReused("request_id was used for a call with other content")
        if isinstance(error, _REFUSED) or text.startswith(_REFUSALS):
            return QueueUnavailable(f"Redis refuses: {text[:200]}")
        return FedsvcError(f"Redis answered: {text[:300]}")
    if isinstance(error, (RedisError, OSError, TimeoutError, asyncio.TimeoutError)):
        return QueueUnavailable(f"Redis does not answer: {type(error).__name__}")
    return error if isinstance(error, Exception) else QueueUnavailable(type(error).__name__)
