"""How the queue speaks with Redis: calls that share a round trip, scripts that Redis forgot, and the end."""

from __future__ import annotations

import asyncio
import importlib.metadata
from typing import Any

import pytest
from servers.queue import Queue
from servers.unused_ports import unused_port

from fedsvc.errors import QueueUnavailable
from fedsvc.queue.bell import Bell
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link


async def test_scripts_that_redis_forgot_are_loaded_again(queue: Queue) -> None:
    await queue.enqueue("1")
    await queue.link.call("SCRIPT", "FLUSH")
    results = await asyncio.gather(*(queue.enqueue(f"{n}") for n in range(2, 20)))
    assert len({r.id for r in results}) == 18
    await queue.is_whole(ready=19)


async def test_concurrent_calls_share_a_round_trip(queue: Queue) -> None:
    await queue.link.call("SET", queue.keys.bell, 0)
    before = await queue.reads()
    for _ in range(20):
        await queue.link.call("INCR", queue.keys.bell)
    after_one_by_one = await queue.reads()
    values = await asyncio.gather(*(queue.link.call("INCR", queue.keys.bell) for _ in range(200)))
    assert values == list(range(21, 221))
    assert after_one_by_one - before > 20
    # ten times as many: one read, one that asks for the number, and what a write may be split into
    assert await queue.reads() - after_one_by_one <= 4


async def test_a_connection_is_made_without_reading_files(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_name: str) -> str:
        raise AssertionError("the version of redis-py was read from its metadata again")

    monkeypatch.setattr(importlib.metadata, "version", read)
    connection = queue.link._topology._redis.connection_pool.make_connection()  # type: ignore[attr-defined]
    await connection.connect()
    await connection.disconnect()


async def test_more_calls_than_fit_a_batch_are_all_answered(queue: Queue) -> None:
    number = Link.MAX_BATCH * (Link.MAX_FLIGHTS + 2)
    values = await asyncio.gather(*(queue.link.call("INCR", queue.keys.bell) for _ in range(number)))
    assert sorted(values) == list(range(1, number + 1))


async def test_calls_of_a_closed_link_end_at_once(queue: Queue) -> None:
    waiting = asyncio.gather(*(queue.link.call("PING") for _ in range(3)), return_exceptions=True)
    await queue.link.close()
    assert all(a == b"PONG" or isinstance(a, QueueUnavailable) for a in await waiting)
    with pytest.raises(QueueUnavailable):
        await queue.link.call("PING")


async def test_a_connection_that_is_closed_while_it_is_made_says_that_redis_is_away(queue: Queue) -> None:
    pool = queue.link._topology._redis.connection_pool  # type: ignore[attr-defined]
    make = pool.make_connection

    def closed_at_once() -> Any:
        connection = make()
        connect = connection._connect

        async def connect_and_lose() -> None:
            await connect()
            connection._writer.transport.abort()
            await connection._writer.wait_closed()

        connection._connect = connect_and_lose
        return connection

    pool.make_connection = closed_at_once
    for ask in (lambda: queue.link.call("PING"), lambda: queue.link.everywhere("PING")):
        with pytest.raises(QueueUnavailable, match="does not answer"):
            await ask()
    with pytest.raises(QueueUnavailable, match="does not answer"):
        _ = [told async for told in Bell(queue.link, queue.keys).listen()]
    pool.make_connection = make
    assert await queue.link.call("PING") == b"PONG"


async def test_a_cluster_that_is_away_is_told_as_any_redis_is() -> None:
    port = unused_port()
    link = Link(f"redis+cluster://127.0.0.1:{port}")
    try:
        for ask in (lambda: link.call("PING"), lambda: link.everywhere("PING")):
            with pytest.raises(QueueUnavailable, match="does not answer"):
                await ask()
        with pytest.raises(QueueUnavailable, match="does not answer"):
            _ = [told async for told in Bell(link, Keys("away")).listen()]
    finally:
        await link.close()
