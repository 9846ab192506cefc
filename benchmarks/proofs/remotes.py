"""Hosts for the proofs, in one process: some take everything, some hang, some answer 503 now and then.

    python -m benchmarks.proofs.remotes HANGING REFUSE_PERCENT SEED

Host n is 127.90.x.y; the first HANGING never answer. What is below /missing is not found.

Prints the port; on each line of its standard input it
prints what arrived since, as JSON: [host, activity id, milliseconds since the epoch] for each that was taken.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections import Counter

OK = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


def address(number: int) -> str:
    return f"127.90.{number // 250}.{number % 250 + 1}"


class Remotes:
    def __init__(self, hanging: int, refuse_percent: int, seed: int) -> None:
        self.hanging = {address(n) for n in range(hanging)}
        self.refuse = refuse_percent
        self.seed = seed
        self.tries: Counter[tuple[str, str]] = Counter()
        self.taken: list[tuple[str, str, float]] = []

    def answer(self, host: str, body: bytes) -> bytes | None:
        """What a host answers; None for nothing at all."""
        if host in self.hanging:
            return None
        start = body.find(b'"id":"') + 6
        id = body[start : body.find(b'"', start)].decode()
        if self.refuse:
            self.tries[host, id] += 1
            text = f"{self.seed} {host} {id} {self.tries[host, id]}".encode()
            if hashlib.blake2b(text, digest_size=1).digest()[0] * 100 < self.refuse * 256:
                return REFUSED
        self.taken.append((host, id, time.time() * 1000))
        return OK


class Connection(asyncio.Protocol):
    def __init__(self, remotes: Remotes) -> None:
        self.remotes = remotes
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.host = transport.get_extra_info("sockname")[0]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            missing = head.startswith(b"post /missing/")
            answer = MISSING if missing else self.remotes.answer(self.host, body)
            if answer is not None:
                self.transport.write(answer)


async def main(hanging: int, refuse_percent: int, seed: int) -> None:
    remotes = Remotes(hanging, refuse_percent, seed)
    loop = asyncio.get_running_loop()
    # all of 127.0.0.0/8 belongs to the loopback interface
    server = await loop.create_server(lambda: Connection(remotes), "0.0.0.0", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        taken, remotes.taken = remotes.taken, []
        print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
