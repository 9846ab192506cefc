"""An inbox's answer as bytes of a connection: whatever it sends, what is read of it is bounded."""

from __future__ import annotations

import asyncio

from fedsvc.domain.delivery import SNIPPET_BYTES
from fedsvc.worker.connection import BODY_BYTES, HEAD_BYTES, BrokenAnswer, ConnectionLost, InboxConnection

_LOOP = asyncio.new_event_loop()


class _Wire(asyncio.Transport):
    """Goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def http_answer(data: bytes) -> None:
    """The first byte says in pieces of which size the others come."""
    if not data:
        return
    size, rest = 1 + data[0] * 4, data[1:]
    wire = _Wire()
    _LOOP.run_until_complete(_read(wire, rest, size))


async def _read(wire: _Wire, rest: bytes, size: int) -> None:
    connection = InboxConnection()
    connection.connection_made(wire)
    told = connection.send(b"POST / HTTP/1.1\r\n\r\n")
    fed = 0
    for start in range(0, len(rest), size):
        if wire.closed:
            break
        connection.data_received(rest[start : start + size])
        fed = min(len(rest), start + size)
    answered = told.done() and told.exception() is None
    connection.connection_lost(None)
    problem = told.exception()
    assert problem is None or isinstance(problem, (BrokenAnswer, ConnectionLost)), problem
    answer = connection.answer
    if answered:
        assert answer is not None
        assert 100 <= answer.status <= 999
        assert len(answer.body_head) <= 2 * SNIPPET_BYTES
    assert fed <= HEAD_BYTES + BODY_BYTES + size, "it goes on to read what never ends"
    assert answer is not None or fed <= HEAD_BYTES + size, "it goes on to read what never becomes a head"
