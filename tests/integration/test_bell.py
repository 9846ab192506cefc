"""The bell that tells workers where there is new work, and what happens when its connection is lost."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from servers.valkey import valkey_server

from fedsvc.errors import QueueUnavailable
from fedsvc.queue.bell import Bell
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link


@pytest.mark.parametrize("how", ["it is stopped", "it is killed", "it was never there"])
async def test_who_listens_is_told_that_redis_is_gone_as_everybody_else_is(tmp_path: Path, how: str) -> None:
    keys = Keys("bells")
    with valkey_server(tmp_path) as valkey:
        link = Link(valkey.url, timeout=1.0)
        bell = Bell(link, keys)
        if how == "it was never there":
            valkey.kill()
        try:
            async with aclosing(bell.listen()) as bells, asyncio.timeout(20):
                if how != "it was never there":
                    waiting = asyncio.ensure_future(anext(bells))
                    while not waiting.done():
                        await link.call("PUBLISH", keys.bell, 7)
                        await asyncio.sleep(0)
                    assert await waiting == (7, False)
                    if how == "it is killed":
                        valkey.kill()
                    else:
                        valkey.stop()
                with pytest.raises(QueueUnavailable, match="does not answer"):
                    _ = [bell async for bell in bells]
        finally:
            await link.close()
