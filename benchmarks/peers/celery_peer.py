"""Celery as PieFed runs it: prefork, one task at a time in each child, acknowledged late, over Redis; without
results, gossip, mingle and heartbeat, none of which anybody here waits for.

Its tasks are synchronous. Each child keeps an event loop and one session, so that connections stay and the
HTTP client is the same as everybody's; clients that are synchronous cost more. With inboxes that answer at
once a child for each core, Celery's own default, keeps the machine busy; more would only take turns.
"""

from __future__ import annotations

import asyncio
import os

import uvloop
from celery import Celery

from benchmarks.peers.port import REDIS_URL, Job, run
from benchmarks.sending import Sender

app = Celery("bench", broker=REDIS_URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=16,  # its guide: many for tasks that are short
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
sender = Sender()
_loop: asyncio.AbstractEventLoop | None = None


@app.task(name="deliver")
def deliver(url: str, body: str) -> None:
    global _loop
    if _loop is None:  # of this child
        _loop = uvloop.new_event_loop()
    _loop.run_until_complete(sender.deliver(url, body))


class CeleryPeer:
    async def enqueue(self, jobs: list[Job]) -> None:
        with app.producer_pool.acquire() as producer:
            for job in jobs:
                deliver.apply_async(job, producer=producer)

    def command(self) -> list[str]:
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
        children = str(len(os.sched_getaffinity(0)))
        return [
            "celery",
            "--app",
            __spec__.name,
            "worker",
            "--pool",
            "prefork",
            "--concurrency",
            children,
            *quiet,
        ]


if __name__ == "__main__":
    run(CeleryPeer())
