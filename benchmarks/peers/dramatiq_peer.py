"""dramatiq: Redis broker, an async actor. A thread waits for each task under way, so that there are as many
threads as tasks at a time; its event loop is uvloop's. All its default middleware is on: age and time limits,
retries."""

from __future__ import annotations

import asyncio

import dramatiq
import uvloop
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO

from benchmarks.load import CONCURRENCY
from benchmarks.peers.port import REDIS_URL, Job, run
from benchmarks.sending import Sender

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
broker = RedisBroker(url=REDIS_URL)
broker.add_middleware(AsyncIO())
dramatiq.set_broker(broker)
sender = Sender()


@dramatiq.actor
async def deliver(url: str, body: str) -> None:
    await sender.deliver(url, body)


class Dramatiq:
    async def enqueue(self, jobs: list[Job]) -> None:
        for job in jobs:
            deliver.send(*job)

    def command(self) -> list[str]:
        return ["dramatiq", __spec__.name, "--processes", "1", "--threads", str(CONCURRENCY)]


if __name__ == "__main__":
    run(Dramatiq())
