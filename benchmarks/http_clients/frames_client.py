"""HTTP/2 by frames written by hand: a floor for any client in Python, not a client.

Headers are literals without indexing and without Huffman's code (RFC 7541, 6.2.2), which costs bytes and
saves work. It knows the one answer that the inboxes of this comparison give, and takes their windows for
endless, as they are: a client for other servers has to decode HPACK, keep to windows and limits of streams
and look at every frame, as ours does with HTTP/1.1.
"""

from __future__ import annotations

import struct
from functools import lru_cache, partial
from typing import Final

from benchmarks.http2 import frame
from benchmarks.http_clients.client import ALWAYS, Inbox
from benchmarks.http_clients.inboxes import (
    ACCEPTED,
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
)
from benchmarks.http_clients.multiplexed import MultiplexedClient, MultiplexedConnection

#: largest length that fits the first byte (RFC 7541, 5.1)
_SHORT: Final = 126
_NO_PUSH: Final = struct.pack(">HI", 2, 0)


class FramesConnection(MultiplexedConnection):
    def __init__(self) -> None:
        super().__init__()
        self._out: list[bytes] = []
        self._buffer = b""
        self._next = 1

    def begin(self, inbox: Inbox, headers: dict[str, str], body: bytes) -> int:
        stream, self._next = self._next, self._next + 2
        block = b"".join(
            (
                _same(inbox.target.path, headers["Host"], len(body)),
                *(literal(name.lower(), value) for name, value in headers.items() if name != "Host"),
            )
        )
        self._out += (frame(HEADERS, END_HEADERS, stream, block), frame(DATA, END_STREAM, stream, body))
        return stream

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        at = 0
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3])
            if len(data) < end:
                break
            kind, flags = data[at + 3], data[at + 4]
            if kind == HEADERS:
                if data[at + 9 : end] != ACCEPTED or not flags & END_STREAM:
                    self._failed(f"another answer: {data[at:end]!r}")
                    return
                self._answered(int.from_bytes(data[at + 5 : at + 9]), 202)
            elif kind == SETTINGS:
                if not flags & ACK:
                    self._out.append(frame(SETTINGS, ACK, 0, b""))
                    self._flush_soon()
                    self.ready.set_result(None)
            elif kind != WINDOW_UPDATE:
                self._failed(f"a frame that these inboxes do not send: {data[at:end]!r}")
                return
            at = end
        self._buffer = data[at:]

    def _greet(self) -> None:
        self._out.append(PREFACE + frame(SETTINGS, 0, 0, _NO_PUSH))

    def _output(self) -> bytes:
        out, self._out = self._out, []
        return b"".join(out)


@lru_cache(maxsize=1024)
def _same(path: str, authority: str, length: int) -> bytes:
    """What is the same of all POSTs to an inbox."""
    pseudo = {":method": "POST", ":scheme": "https", ":path": path, ":authority": authority}
    always = {**ALWAYS, "Content-Length": str(length)}
    return b"".join(literal(name.lower(), value) for name, value in {**pseudo, **always}.items())


def literal(name: str, value: str) -> bytes:
    """A header without indexing. Raises ValueError for a name that is longer than any of ours."""
    if len(name) > _SHORT:
        raise ValueError(f"a name of {len(name)} bytes")
    told = value.encode("latin-1")
    length = len(told)
    if length <= _SHORT:
        return b"\0%c%b%c%b" % (len(name), name.encode(), length, told)
    rest, coded = length - _SHORT - 1, bytearray((_SHORT + 1,))
    while rest > 127:
        coded.append(rest % 128 + 128)
        rest //= 128
    coded.append(rest)
    return b"\0%c%b%b%b" % (len(name), name.encode(), bytes(coded), told)


make = partial(MultiplexedClient, FramesConnection)
