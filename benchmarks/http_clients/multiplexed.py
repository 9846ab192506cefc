"""One HTTP/2 connection to each host, shared by all POSTs to it, whoever makes its frames.

All that is to be written in one turn of the event loop is written at once: of what HTTP/2 can save, that
is most.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

from benchmarks.http_clients.client import Inbox, http2_context


class MultiplexedConnection(asyncio.Protocol, ABC):
    """Frames are the subclass's: it sends what `_output` gives, and tells `_answered` what came."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._to_be_flushed = False
        #: done when the server has told its settings: before that it takes less than it will
        self.ready: asyncio.Future[None] = self._loop.create_future()

    @abstractmethod
    def begin(self, inbox: Inbox, headers: dict[str, str], body: bytes) -> int:
        """Makes the frames of a POST; the number of its stream."""

    @abstractmethod
    def _output(self) -> bytes:
        """What there is to be written, which is then forgotten."""

    @abstractmethod
    def _greet(self) -> None:
        """Makes what a connection begins with."""

    def post(self, inbox: Inbox, headers: dict[str, str], body: bytes) -> asyncio.Future[int]:
        """Done with the status of the answer. Raises ConnectionError instead if the connection ends."""
        answer: asyncio.Future[int] = self._loop.create_future()
        self._waiting[self.begin(inbox, headers, body)] = answer
        self._flush_soon()
        return answer

    def close(self) -> None:
        self._transport.close()

    # -- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._greet()
        self._flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        lost = ConnectionError(f"the connection was closed: {exc}")
        if not self.ready.done():
            self.ready.set_exception(lost)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(lost)

    # -- for the subclass

    def _answered(self, stream: int, status: int) -> None:
        answer = self._waiting.pop(stream)
        if not answer.done():
            answer.set_result(status)

    def _failed(self, why: str) -> None:
        self.connection_lost(ConnectionError(why))
        self._transport.abort()

    def _flush_soon(self) -> None:
        if not self._to_be_flushed:
            self._to_be_flushed = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._to_be_flushed = False
        if out := self._output():
            self._transport.write(out)


class MultiplexedClient:
    def __init__(self, connection: Callable[[], MultiplexedConnection]) -> None:
        self._made_by = connection
        self._connections: dict[str, MultiplexedConnection] = {}
        self._connecting: dict[str, asyncio.Lock] = {}

    async def open(self, authority: str) -> None:
        self._context = http2_context(authority)

    async def post(self, inbox: Inbox, headers: dict[str, str], body: bytes) -> int:
        connection = self._connections.get(inbox.host)
        if connection is None:
            connection = await self._connected(inbox)
        return await connection.post(inbox, headers, body)

    async def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    async def _connected(self, inbox: Inbox) -> MultiplexedConnection:
        """The first to ask makes it, and all others wait for that."""
        async with self._connecting.setdefault(inbox.host, asyncio.Lock()):
            if inbox.host not in self._connections:
                _, connection = await asyncio.get_running_loop().create_connection(
                    self._made_by, inbox.host, inbox.port, ssl=self._context, server_hostname=inbox.host
                )
                await connection.ready
                self._connections[inbox.host] = connection
            return self._connections[inbox.host]
