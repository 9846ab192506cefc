"""Inboxes with TLS that answer HTTP/1.1 and HTTP/2 with 202, at the least cost, in a process of their own.

    python -m benchmarks.http_clients.inboxes CERTIFICATE.pem

Speaks as `benchmarks.sink` does, whose HTTP/1.1 it has. Of HTTP/2 it reads frames only: a request is over
with its last frame, whatever its headers say, and is told of by its length. Windows never run out.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
import sys
from typing import Final

import uvloop

from benchmarks import sink
from benchmarks.http2 import frame

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
#: `:status: 202`, the name by its number in the static table, the value as a literal (RFC 7541, 6.2.2)
ACCEPTED: Final = b"\x08\x03202"

_LARGEST_WINDOW: Final = 2**31 - 1
#: MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE
_SETTINGS: Final = struct.pack(">HIHI", 3, 1024, 4, _LARGEST_WINDOW)
#: bytes taken before the client hears that it may send as many more
_TELL_AFTER: Final = 2**20
_NOT_REQUESTS: Final = frozenset({GOAWAY, WINDOW_UPDATE})


class Http2Connection(asyncio.Protocol):
    """Takes over when the handshake has chosen HTTP/2."""

    def __init__(self, inboxes: sink.Inboxes, transport: asyncio.Transport) -> None:
        self._inboxes = inboxes
        self._transport = transport
        self._buffer = b""
        self._begun = False
        self._taken = 0
        self._lengths: dict[int, int] = {}
        window = struct.pack(">I", _LARGEST_WINDOW - 65_535)
        transport.write(frame(SETTINGS, 0, 0, _SETTINGS) + frame(WINDOW_UPDATE, 0, 0, window))

    def connection_lost(self, exc: Exception | None) -> None:
        self._inboxes.open -= 1

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        at, out = 0, []
        if not self._begun:
            if len(data) < len(PREFACE):
                self._buffer = data
                return
            self._begun, at = True, len(PREFACE)
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3])
            if len(data) < end:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9])
            if kind in (HEADERS, DATA):
                self._lengths[stream] = self._lengths.get(stream, 0) + end - at
                if kind == DATA:
                    self._taken += end - at - 9
                if flags & END_STREAM:
                    out.append(frame(HEADERS, END_STREAM | END_HEADERS, stream, ACCEPTED))
                    self._inboxes.came(b"", self._lengths.pop(stream))
            elif kind in (SETTINGS, PING):
                if not flags & ACK:
                    out.append(frame(kind, ACK, 0, data[at + 9 : end] if kind == PING else b""))
            elif kind not in _NOT_REQUESTS:
                raise ValueError(f"a frame that no client of this comparison sends: {data[at : at + 9]!r}")
            at = end
        self._buffer = data[at:]
        if self._taken > _TELL_AFTER:
            out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0
        if out:
            self._transport.write(b"".join(out))


class Connection(sink.Connection):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
            self.transport.set_protocol(Http2Connection(self.inboxes, self.transport))


async def main(certificate: str) -> None:
    inboxes = sink.Inboxes()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(inboxes), "0.0.0.0", 0, backlog=4096, ssl=context)
    sink.say([server.sockets[0].getsockname()[1]])
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        inboxes.command(line)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
