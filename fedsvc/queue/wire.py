"""Flights on one connection: commands go out in one write, their answers come back in order.

redis-py makes the connection (address, TLS, AUTH, SELECT, Sentinel). What arrives afterwards comes here, as
its streams, tasks and deadlines for each answer cost several times what hiredis takes to read them.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from hiredis import PushNotification, Reader
from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

_MORE: Final = object()


class Wire(asyncio.Protocol):
    """A connection that redis-py has made. One flight at a time."""

    def __init__(self, connection: Connection) -> None:
        """Raises RedisConnectionError if it has ended already."""
        self._connection = connection
        writer = connection._writer
        if writer is None:
            raise RedisConnectionError("the connection has ended")
        self._transport = cast(asyncio.Transport, writer.transport)
        #: redis-py's own, which learns of the end
        self._before = cast(asyncio.Protocol, self._transport.get_protocol())
        self._reader = Reader(
            protocolError=InvalidResponse, replyError=connection._parser.parse_error, notEnoughData=_MORE
        )
        self._answers: list[Any] = []
        self._expected = 0
        self._flight: asyncio.Future[list[Any]] | None = None
        self._lost = False
        self._transport.set_protocol(self)

    @property
    def usable(self) -> bool:
        return not self._lost and not self._transport.is_closing()

    def fly(self, packed: bytes, commands: int) -> asyncio.Future[list[Any]]:
        """Answers of so many commands, errors among them as values. The future raises RedisError or OSError
        if not all were answered; then the connection is of no use any more."""
        self._expected = commands
        self._flight = flight = asyncio.get_running_loop().create_future()
        if self.usable:
            self._transport.write(packed)
        else:
            self._fail(RedisConnectionError("the connection has ended"))
        return flight

    def late(self) -> None:
        """Time is over for the flight."""
        self._fail(TimeoutError("Redis did not answer in time"))

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not _MORE:
                if isinstance(answer, PushNotification):
                    continue
                if isinstance(answer, RedisConnectionError):  # it is loading, or does not let us in
                    raise answer
                self._answers.append(answer)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            self._fail(error)
        if len(self._answers) > self._expected:
            self._fail(InvalidResponse("Redis has said more than was asked"))
        elif len(self._answers) == self._expected and self._flight is not None:
            flight, answers = self._flight, self._answers
            self._flight, self._answers, self._expected = None, [], 0
            if not flight.done():
                flight.set_result(answers)

    def eof_received(self) -> bool:
        return False  # close it

    def connection_lost(self, error: Exception | None) -> None:
        self._before.connection_lost(error)
        self._fail(error or RedisConnectionError("Redis has closed the connection"))

    def _fail(self, error: Exception) -> None:
        self._lost = True
        if self._flight is not None and not self._flight.done():
            self._flight.set_exception(error)
        self._flight = None
