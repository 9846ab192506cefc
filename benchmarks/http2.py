"""Unary gRPC calls at next to no cost for the caller, so that a server is what limits their rate.

Each call is the same bytes (RFC 9113) but for its stream id and message, and of an answer only its frames are
looked at. The headers are literals without indexing (RFC 7541, 6.2.2), so that no call depends on another.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_LARGEST_WINDOW: Final = 2**31 - 1
#: bytes that are taken before the server may send more: of the connection, told now and then
_TELL_AFTER: Final = 2**20


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    if max(len(name), len(value)) > 126:
        raise ValueError("a header that one byte cannot tell the length of")
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


def header_block(path: str) -> bytes:
    headers = {
        b":method": b"POST", b":scheme": b"http", b":path": path.encode(), b":authority": b"bench",
        b"content-type": b"application/grpc", b"te": b"trailers",
    }  # fmt: skip
    return b"".join(_literal(name, value) for name, value in headers.items())


class Caller(asyncio.Protocol):
    """Keeps `at_once` calls of one method under way until `messages` end; `done` then says how many it were.

    An answer with a message counts; one without (an error) fails everything, as anything unexpected does.
    """

    def __init__(self, path: str, messages: Iterator[bytes], at_once: int) -> None:
        self._block = header_block(path)
        self._messages = messages
        self._at_once = at_once
        self._stream = 1
        self._under_way: set[int] = set()
        self._with_message: set[int] = set()
        self._buffer = b""
        self._taken = 0
        self._answered = 0
        self._ready = False
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        settings = struct.pack(">HI", 4, _LARGEST_WINDOW)  # SETTINGS_INITIAL_WINDOW_SIZE
        window = struct.pack(">I", _LARGEST_WINDOW - 65_535)
        self._transport.write(_PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW, 0, 0, window))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the connection was closed")

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        at, finished, out = 0, 0, []
        while len(data) - at >= 9:
            length = int.from_bytes(data[at : at + 3])
            if len(data) - at < 9 + length:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9])
            payload = data[at + 9 : at + 9 + length]
            at += 9 + length
            if kind == _DATA:
                self._taken += length
                if length:
                    self._with_message.add(stream)
            elif kind == _SETTINGS and not flags & _ACK:
                out.append(frame(_SETTINGS, _ACK, 0, b""))
                self._ready = True
            elif kind == _PING and not flags & _ACK:
                out.append(frame(_PING, _ACK, 0, payload))
            elif kind in (_RST, _GOAWAY):
                return self._fail(f"the server ended it: frame {kind}, {payload!r}")
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                finished += 1
                self._under_way.discard(stream)
                if stream not in self._with_message:
                    return self._fail("a call failed")
                self._with_message.discard(stream)
        self._buffer = data[at:]
        self._answered += finished
        if self._taken > _TELL_AFTER:
            out.append(frame(_WINDOW, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0
        if self._ready:
            out += self._calls(self._at_once - len(self._under_way))
        if out:
            self._transport.write(b"".join(out))
        if not self._under_way and self._ready and not self.done.done():
            self.done.set_result(self._answered)
        return None

    def _calls(self, count: int) -> Iterator[bytes]:
        for _ in range(count):
            message = next(self._messages, None)
            if message is None:
                return
            stream, self._stream = self._stream, self._stream + 2
            self._under_way.add(stream)
            yield frame(_HEADERS, _END_HEADERS, stream, self._block)
            yield frame(_DATA, _END_STREAM, stream, b"\0" + struct.pack(">I", len(message)) + message)

    def close(self) -> None:
        self._transport.close()

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))
        self._transport.close()
