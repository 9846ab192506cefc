"""One POST over a kept-alive connection, within limits, to an address that the policy allows.

Whatever goes wrong becomes an `Answer` with a `TransportError`; only the end of the caller's time,
cancellation and defects are raised.
"""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Final

from fedsvc.config import Settings
from fedsvc.domain.classify import Answer, TransportError
from fedsvc.worker.connection import BrokenAnswer, ConnectionLost, InboxConnection
from fedsvc.worker.deadlines import Deadlines
from fedsvc.worker.dialer import Dialer, DialFailed, Origin, ResumingContext

#: seconds that a body may take once its head, which decides, is there
BODY_WAIT_S: Final = 3.0
#: seconds for which an idle connection is kept; most servers close theirs after 60 or more
KEEP_ALIVE_S: Final = 30.0
#: idle connections to all hosts together, and the part that they may be of the files that may be open
MAX_IDLE: Final = 16_384
IDLE_PART: Final = 0.5
#: what some proxies say as they close one
_IDLE_FOR_LONG: Final = 408
#: seconds between two looks for connections that were idle for too long
_SWEEP_S: Final = 1.0


class Transport:
    """Belongs to one event loop. `open` before use, `close` after."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened = AsyncExitStack()
        self._closed = False
        self._kept: dict[Origin, list[InboxConnection]] = {}
        #: the same, idle the longest first
        self._idle: OrderedDict[InboxConnection, Origin] = OrderedDict()
        #: what every request says
        self._always = f"\r\nUser-Agent: {settings.user_agent}\r\nAccept: */*\r\nAccept-Encoding: identity"
        self._always += "\r\nContent-Length: "

    async def open(self) -> None:
        """Raises OSError if the CA file cannot be read, ssl.SSLError if it holds no certificate."""
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines()
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        unlimited = files == resource.RLIM_INFINITY
        self._most_idle = MAX_IDLE if unlimited else min(MAX_IDLE, int(files * IDLE_PART))
        context = await asyncio.to_thread(ResumingContext.trusting, self._settings.ca_file)
        self._dialer = Dialer(self._settings, context)
        self._opened.push_async_callback(self._dialer.close)
        sweeping = self._loop.create_task(self._sweep())
        self._opened.callback(self._drop_idle)
        self._opened.callback(sweeping.cancel)

    async def close(self) -> None:
        """Drops all connections: idle ones now, others as they end. Harmless if it is not open."""
        self._closed = True
        await self._opened.aclose()

    async def post(
        self,
        origin: Origin,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        ends: float,
    ) -> Answer:
        """The answer to one POST. Raises TimeoutError when it is not there at `ends` (seconds, the loop's
        clock), ValueError for a header that could become two. Once the status is there, the body has
        BODY_WAIT_S at most.

        A server may close an idle connection just when we use it, without a word or with a 408 (RFC 9110
        section 15.5.9). Such an end, before any other answer on a kept connection, is followed by one more
        try at once on a new connection: an activity is known by its id, so that receiving it twice does no
        harm, and the host is not to blame.
        """
        request = self._request(path, headers, body)
        kept = self._take(origin)
        try:
            if kept is not None:
                try:
                    answer = await self._ask(kept, origin, request, ends)
                    if answer.status != _IDLE_FOR_LONG or kept.usable:
                        return answer
                except ConnectionLost as error:
                    if kept.heard:
                        return Answer(error=TransportError.RESET, detail=str(error))
            connection = await self._dialer.dial(origin, ends)
            return await self._ask(connection, origin, request, ends)
        except DialFailed as error:
            return Answer(error=error.kind, detail=error.detail)
        except ConnectionLost as error:
            return Answer(error=TransportError.RESET, detail=str(error))
        except BrokenAnswer as error:
            return Answer(error=TransportError.PROTOCOL, detail=str(error))

    async def _ask(self, connection: InboxConnection, origin: Origin, request: bytes, ends: float) -> Answer:
        try:
            await self._deadlines.until(ends, connection.send(request))
            answer = connection.answer
            assert answer is not None
            if not connection.whole and answer.status not in (307, 308):  # followed, whatever its body says
                # to know what it says and to keep the connection; the status stands without it
                body_ends = min(ends, self._loop.time() + BODY_WAIT_S)
                with suppress(TimeoutError):
                    await self._deadlines.until(body_ends, connection.rest())
                answer = connection.answer or answer
            return answer
        finally:
            self._give_back(origin, connection)

    def _request(self, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        lines = [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join((f"POST {path} HTTP/1.1", *lines))
        if head.count("\n") != len(headers) or head.count("\r") != len(headers):
            raise ValueError("a header with a line end")
        return f"{head}{self._always}{len(body)}\r\n\r\n".encode("latin-1") + body

    # -- connections that are kept

    def _take(self, origin: Origin) -> InboxConnection | None:
        """The one that was used last: its remote is the least likely to have closed it."""
        kept = self._kept.get(origin)
        while kept:
            connection = kept.pop()
            self._idle.pop(connection, None)
            if not kept:
                del self._kept[origin]
            if connection.usable and connection.quiet:
                return connection
            connection.close()
        return None

    def _give_back(self, origin: Origin, connection: InboxConnection) -> None:
        if self._closed or not connection.usable:
            connection.close()
            return
        if not connection.idle_since:
            self._dialer.keep_session(origin, connection)
        connection.idle_since = self._loop.time()
        self._kept.setdefault(origin, []).append(connection)
        self._idle[connection] = origin
        if len(self._idle) > self._most_idle:
            self._forget(next(iter(self._idle)))

    def _forget(self, connection: InboxConnection) -> None:
        origin = self._idle.pop(connection)
        kept = self._kept[origin]
        kept.remove(connection)
        if not kept:
            del self._kept[origin]
        connection.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            before = self._loop.time() - KEEP_ALIVE_S
            while self._idle and next(iter(self._idle)).idle_since <= before:
                self._forget(next(iter(self._idle)))

    def _drop_idle(self) -> None:
        while self._idle:
            self._forget(next(iter(self._idle)))
