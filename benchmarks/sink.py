"""Inboxes that cost as little as possible, in a process of their own: every POST is answered with 202.

    python -m benchmarks.sink [CERTIFICATE.pem...]

Listens on all of 127.0.0.0/8, with TLS on one port for each certificate if any is given, and prints its ports
as JSON. Below /hold/ nothing is answered until it is told to; of what is below /t/ it notes when it came.

Lines on its standard input: `expect A B...` counts from 0 and prints a line when so many have come, `told`
prints what it knows, `times` prints and forgets what it noted, `release` answers what was held. Ends with its
standard input.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from typing import Any, cast

import uvloop

ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"


class Inboxes:
    def __init__(self) -> None:
        self.expected: list[int] = []
        self.times: dict[str, float] = {}
        self.held: list[asyncio.Transport] = []
        self.open = 0
        self.most_open = 0
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self.connections = 0
        #: with TLS: handshakes that resumed no session
        self.handshakes = 0
        self.resumed = 0
        #: the last request: its head, and its length in bytes
        self.head = b""
        self.length = 0

    def came(self, head: bytes, length: int) -> None:
        self.count += 1
        self.head, self.length = head, length
        if self.expected and self.count >= self.expected[0]:
            del self.expected[0]
            say({"count": self.count, "at": time.monotonic()})

    def told(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "connections": self.connections,
            "handshakes": self.handshakes,
            "resumed": self.resumed,
            "most_open": self.most_open,
            "held": len(self.held),
            "head": self.head.decode(errors="replace"),
            "length": self.length,
        }

    def command(self, line: str) -> None:
        match line.split():
            case ["expect", *counts]:
                self.reset()
                self.expected = sorted(map(int, counts))
                say({"expecting": counts})
            case ["told"]:
                say(self.told())
            case ["times"]:
                say(self.times)
                self.times = {}
            case ["release"]:
                held, self.held = self.held, []
                for transport in held:
                    transport.write(ANSWER)
            case _:
                raise ValueError(line)


class Connection(asyncio.Protocol):
    def __init__(self, inboxes: Inboxes) -> None:
        self.inboxes = inboxes
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        inboxes = self.inboxes
        inboxes.connections += 1
        inboxes.open += 1
        inboxes.most_open = max(inboxes.most_open, inboxes.open)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            if tls.session_reused:
                inboxes.resumed += 1
            else:
                inboxes.handshakes += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.inboxes.open -= 1

    def data_received(self, data: bytes) -> None:
        self.buffer = data = self.buffer + data if self.buffer else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:end]
            at = head.find(b"\r\nContent-Length: ")
            if at < 0:
                at = head.lower().find(b"\r\ncontent-length: ")
            assert at >= 0, head
            length = end + 4 + int(head[at + 18 :].split(b"\r\n", 1)[0])
            if len(data) < length:
                break
            self.buffer = data = data[length:]
            self.take(head, length)

    def take(self, head: bytes, length: int) -> None:
        inboxes = self.inboxes
        if head.startswith(b"POST /hold/"):
            inboxes.held.append(self.transport)
        else:
            if head.startswith(b"POST /t/"):
                inboxes.times[head[5 : head.index(b" ", 5)].decode()] = time.monotonic()
            self.transport.write(ANSWER)
        inboxes.came(head, length)


def say(line: object) -> None:
    print(json.dumps(line), flush=True)


async def main(certificates: list[str]) -> None:
    loop = asyncio.get_running_loop()
    inboxes = Inboxes()
    contexts: list[ssl.SSLContext | None] = [None]
    if certificates:
        contexts = []
        for certificate in certificates:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            contexts.append(context)
    servers = [
        await loop.create_server(lambda: Connection(inboxes), "0.0.0.0", 0, backlog=4096, ssl=context)
        for context in contexts
    ]
    say([server.sockets[0].getsockname()[1] for server in servers])
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        inboxes.command(line)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
