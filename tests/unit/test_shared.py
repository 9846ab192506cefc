"""One answer for all who ask at the same time."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from fedsvc.errors import QueueUnavailable
from fedsvc.queue.shared import Shared


async def test_a_reading_that_fails_when_all_have_given_up_is_no_defect() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    begun, away = asyncio.Event(), asyncio.Event()
    ended = asyncio.Event()

    async def read() -> int:
        begun.set()
        await away.wait()
        try:
            raise QueueUnavailable("Redis does not answer")
        finally:
            ended.set()

    shared = Shared(read, fresh=1.0)
    asking = asyncio.create_task(shared.get())
    await begun.wait()
    asking.cancel()
    await asyncio.wait([asking])
    away.set()
    await ended.wait()
    await asyncio.sleep(0)
    shared.forget()
    gc.collect()
    assert complaints == []
