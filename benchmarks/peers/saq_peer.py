"""saq: concurrency as told, nothing kept of what is done (ttl -1), uvloop."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvloop
from saq import Queue

from benchmarks.load import CONCURRENCY
from benchmarks.peers.port import REDIS_URL, Job, run
from benchmarks.sending import Sender

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
logging.getLogger("saq").setLevel(logging.WARNING)
queue = Queue.from_url(REDIS_URL, name="bench")
sender = Sender()


async def deliver(_: Any, *, url: str, body: str) -> None:
    await sender.deliver(url, body)


settings = {"queue": queue, "functions": [("deliver", deliver)], "concurrency": CONCURRENCY}


class Saq:
    async def enqueue(self, jobs: list[Job]) -> None:
        await queue.connect()
        for at in range(0, len(jobs), CONCURRENCY):
            part = jobs[at : at + CONCURRENCY]
            options = {"ttl": -1, "retries": 10}
            await asyncio.gather(
                *(queue.enqueue("deliver", url=job.url, body=job.body, **options) for job in part)
            )
        await queue.disconnect()

    def command(self) -> list[str]:
        return ["saq", f"{__spec__.name}.settings"]


if __name__ == "__main__":
    run(Saq())
