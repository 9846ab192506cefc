"""Callers go away, and processes stop, in the middle of a transaction."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from sqlalchemy import text

from fedsvc.archive.engine import create_engine
from fedsvc.archive.transaction import transaction
from fedsvc.config import Settings


async def work(settings: Settings, steps: int) -> int:
    """A transaction of several statements is cancelled after so many turns of the loop, and again as the loop
    ends. How many tasks do not."""
    before = asyncio.all_tasks()
    engine = create_engine(settings)

    async def statements() -> None:
        async with transaction(engine) as connection:
            for number in range(5):
                await connection.execute(text("INSERT INTO t VALUES (:n)"), {"n": number})

    task = asyncio.create_task(statements())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - before
    for one in left:
        one.cancel()  # as asyncio.run does at its end
    if left:
        await asyncio.wait(left, timeout=5)
    await engine.dispose()
    return len([one for one in left if not one.done()])


async def test_who_is_cancelled_in_a_transaction_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = Settings.from_environment({"DATABASE_URL": f"sqlite:///{tmp_path}/a.db"})
    engine = create_engine(settings)
    async with transaction(engine) as connection:
        await connection.execute(text("CREATE TABLE t (n INTEGER)"))
    await engine.dispose()
    before = set(threading.enumerate())
    for steps in range(0, 400, 3):
        async with asyncio.timeout(30):
            assert await work(settings, steps) == 0, f"after {steps} turns"
    # Of who was cancelled twice, the connection's thread may have a moment's work left.
    async with asyncio.timeout(30):
        while any(thread.is_alive() for thread in set(threading.enumerate()) - before):
            await asyncio.sleep(0.01)
