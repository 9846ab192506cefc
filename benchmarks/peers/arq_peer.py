"""arq: as many jobs at a time as told, no results kept, uvloop; it looks for more every 20 ms, not 500."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import uvloop
from arq import create_pool
from arq.connections import RedisSettings

from benchmarks.load import CONCURRENCY
from benchmarks.peers.port import REDIS_URL, Job, run
from benchmarks.sending import Sender

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
sender = Sender()


async def deliver(_: Any, url: str, body: str) -> None:
    await sender.deliver(url, body)


class WorkerSettings:
    functions: ClassVar = [deliver]
    redis_settings = RedisSettings.from_dsn(REDIS_URL)
    max_jobs = CONCURRENCY
    keep_result = 0
    poll_delay = 0.02
    log_results = False


class Arq:
    async def enqueue(self, jobs: list[Job]) -> None:
        pool = await create_pool(WorkerSettings.redis_settings)
        for at in range(0, len(jobs), CONCURRENCY):
            part = jobs[at : at + CONCURRENCY]
            await asyncio.gather(*(pool.enqueue_job("deliver", *job) for job in part))
        await pool.aclose()

    def command(self) -> list[str]:
        return ["arq", f"{__spec__.name}.WorkerSettings", "--custom-log-dict", f"{__spec__.name}.QUIET"]


#: else it writes two lines a job
QUIET = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}

if __name__ == "__main__":
    run(Arq())
