"""Calls a server as fast as it answers, over several connections, from a process of its own.

    python -m benchmarks.caller TARGET CONNECTIONS CALLS_AT_ONCE

Each line of its standard input is a job as JSON: method path, count, and the message in base64, in which the
nine characters `#########` become a number from `first` on. It answers each with the seconds that it took and
its own CPU seconds.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Iterator

import uvloop

from benchmarks.http2 import Caller

HOLE = b"#########"


def messages(template: bytes, numbers: Iterator[int]) -> Iterator[bytes]:
    before, hole, after = template.partition(HOLE)
    if not hole:
        for _ in numbers:
            yield template
    for number in numbers:
        yield b"%b%09d%b" % (before, number, after)


async def call(target: str, connections: int, at_once: int, path: str, sent: Iterator[bytes]) -> int:
    """How many were answered."""
    host, _, port = target.rpartition(":")
    loop = asyncio.get_running_loop()
    callers = []
    for _ in range(connections):
        _, caller = await loop.create_connection(
            lambda: Caller(path, sent, max(1, at_once // connections)), host, int(port)
        )
        callers.append(caller)
    answered = sum(await asyncio.gather(*(caller.done for caller in callers)))
    for caller in callers:
        caller.close()
    return answered


def main(target: str, connections: int, at_once: int) -> None:
    for line in sys.stdin:
        job = json.loads(line)
        numbers = iter(range(job["first"], job["first"] + job["count"]))
        sent = messages(base64.b64decode(job["message"]), numbers)
        wall, cpu = time.perf_counter(), time.process_time()
        answered = uvloop.run(call(target, connections, at_once, job["path"], sent))
        told = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "answered": answered}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
