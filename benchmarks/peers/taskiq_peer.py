"""taskiq with taskiq-redis: the broker on streams, which acknowledges. It takes up uvloop by itself."""

from __future__ import annotations

import asyncio

from taskiq_redis import RedisStreamBroker

from benchmarks.load import CONCURRENCY
from benchmarks.peers.port import REDIS_URL, Job, run
from benchmarks.sending import Sender

# 0: what came before the first worker counts too
broker = RedisStreamBroker(url=REDIS_URL, consumer_id="0", xread_count=CONCURRENCY)
sender = Sender()


@broker.task(task_name="deliver")
async def deliver(url: str, body: str) -> None:
    await sender.deliver(url, body)


class Taskiq:
    async def enqueue(self, jobs: list[Job]) -> None:
        await broker.startup()
        for at in range(0, len(jobs), CONCURRENCY):
            await asyncio.gather(*(deliver.kiq(*job) for job in jobs[at : at + CONCURRENCY]))
        await broker.shutdown()

    def command(self) -> list[str]:
        limits = ["--max-async-tasks", str(CONCURRENCY), "--max-prefetch", str(CONCURRENCY)]
        quiet = ["--log-level", "WARNING"]
        return ["taskiq", "worker", f"{__spec__.name}:broker", "--workers", "1", *limits, *quiet]


if __name__ == "__main__":
    run(Taskiq())
