"""The hosts of a population, in one process: each answers 202 after its own time.

    python -m benchmarks.scaling.remotes HOSTS SEED

Host n is `load.address(n)`. Prints the port; at the end of its standard input it prints, as JSON, when each
request came (seconds, the monotonic clock), by `<host number> <activity number>`.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import cast

import uvloop

from benchmarks.load import address
from benchmarks.scaling.population import Population, jitter

ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
ID = b'"id":"https://me.example/activities/'


class Remotes:
    def __init__(self, hosts: int, seed: int) -> None:
        population = Population(hosts, seed, well=True)
        self.answer_s = {address(n): host.answer_s for n, host in enumerate(population.hosts)}
        self.numbers = {address(n): n for n in range(hosts)}
        self.draw = random.Random(f"remotes {seed}")
        self.came: dict[str, float] = {}


class Connection(asyncio.Protocol):
    def __init__(self, remotes: Remotes) -> None:
        self.remotes = remotes
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.host = transport.get_extra_info("sockname")[0]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.index(b"content-length: ") + 16
            length = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
            if len(self.buffer) < length:
                return
            self.take(self.buffer[end + 4 : length])
            self.buffer = self.buffer[length:]

    def take(self, body: bytes) -> None:
        remotes = self.remotes
        start = body.index(ID) + len(ID)
        number = int(body[start : body.index(b'"', start)])
        remotes.came.setdefault(f"{remotes.numbers[self.host]} {number}", time.monotonic())
        wait = remotes.answer_s[self.host] * jitter(remotes.draw)
        asyncio.get_running_loop().call_later(wait, self.answer)

    def answer(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(ANSWER)


async def main(hosts: int, seed: int) -> None:
    remotes = Remotes(hosts, seed)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(remotes), "0.0.0.0", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    print(json.dumps(remotes.came), flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
