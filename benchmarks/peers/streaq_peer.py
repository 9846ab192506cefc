"""streaq: concurrency as told, no results kept (ttl 0), uvloop, tasks queued in one pipeline."""

from __future__ import annotations

import logging

from streaq import Worker

from benchmarks.load import CONCURRENCY
from benchmarks.peers.port import REDIS_URL, Job, run
from benchmarks.sending import Sender

logging.getLogger("streaq").setLevel(logging.WARNING)
worker = Worker(redis_url=REDIS_URL, concurrency=CONCURRENCY, anyio_kwargs={"use_uvloop": True})
sender = Sender()


@worker.task(ttl=0)
async def deliver(url: str, body: str) -> None:
    await sender.deliver(url, body)


class Streaq:
    async def enqueue(self, jobs: list[Job]) -> None:
        async with worker:
            await worker.enqueue_many([deliver.enqueue(*job) for job in jobs])

    def command(self) -> list[str]:
        return ["streaq", "run", f"{__spec__.name}:worker"]


if __name__ == "__main__":
    run(Streaq())
