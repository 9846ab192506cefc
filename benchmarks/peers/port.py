"""What a peer has to offer. It runs in an environment of its own, told by variables where everything is:
`python -m benchmarks.peers.NAME enqueue|work`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from benchmarks.load import HOSTS, address

REDIS_URL: Final = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/1")


class Job(NamedTuple):
    url: str
    body: str


class Peer(Protocol):
    async def enqueue(self, jobs: list[Job]) -> None:
        """Puts them into the queue, however it likes best."""

    def command(self) -> list[str]:
        """How its documentation has a worker started: a program of its environment and what it is given."""


def jobs() -> Iterator[Job]:
    """BENCH_DELIVERIES of them. Each carries its activity, since a task has to be complete in itself."""
    body, port = Path(os.environ["BENCH_BODY"]).read_text(), os.environ["BENCH_PORT"]
    for number in range(int(os.environ["BENCH_DELIVERIES"])):
        yield Job(f"http://{address(number % HOSTS)}:{port}/inbox", body)


def run(peer: Peer) -> None:
    match sys.argv[1:]:
        case ["enqueue"]:
            asyncio.run(peer.enqueue(list(jobs())))
        case ["work"]:
            program, *arguments = peer.command()
            path = Path(sys.executable).parent / program
            os.execv(path, [str(path), *arguments])  # one process less, and signals reach it
        case _:
            sys.exit("enqueue or work?")
