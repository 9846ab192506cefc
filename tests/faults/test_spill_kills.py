"""Backlogs on their way to SQL and back, while workers get real SIGKILLs, and Redis loses its memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fedsvc_client import AsyncFedsvcClient
from servers.activities import activity
from servers.fleet import Fleet, fleet
from servers.inbox import InboxServer
from servers.valkey import ValkeyServer, valkey_server

KEY_ID = "https://me.example/u/ada#main-key"
ADDRESSES = tuple(f"127.79.0.{i}" for i in range(1, 9))
ACTIVITIES = 600
TOTAL = len(ADDRESSES) * ACTIVITIES
#: of each host so few stay that they are not worth it
MOST = len(ADDRESSES) * (ACTIVITIES - 100)
PARTITIONS = 4
#: as if memory were short
SHORT = {"FEDSVC_MEMORY_WARNING": "0.0001", "FEDSVC_SPILL_AFTER": "0"}
SETTINGS = {
    "FEDSVC_PARTITIONS": str(PARTITIONS),
    "FEDSVC_LEASE": "2",
    "FEDSVC_RECOVERY_RATE": "100000",
    "FEDSVC_SHUTDOWN_GRACE": "5",
}


def spilled(valkey: ValkeyServer) -> int:
    """How many deliveries are in SQL, as Redis knows it."""
    with valkey.client() as redis:
        return sum(int(redis.hget(f"fedsvc:{{p{n}}}:counters", "spilled") or 0) for n in range(PARTITIONS))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.002)


async def all_delivered(client: AsyncFedsvcClient, total: int) -> None:
    async with asyncio.timeout(60):
        while (stats := await client.get_queue_stats()).pending:
            await asyncio.sleep(0.05)
    assert (stats.accepted, stats.delivered, stats.conserved) == (total, total, True)


async def sent_away(site: Fleet, valkey: ValkeyServer, kills: int) -> None:
    """All that is worth it goes to SQL; so many workers that do that are killed on the way."""
    for kill in range(1, kills + 1):
        worker = site.worker(**SHORT)
        await until(lambda least=MOST * kill // (kills + 1): spilled(valkey) >= least)  # type: ignore[misc]
        worker.kill()
    worker = site.worker(**SHORT)
    await until(lambda: spilled(valkey) >= MOST)
    worker.kill()


@asynccontextmanager
async def backlog(
    directory: Path, pem: str
) -> AsyncIterator[tuple[Fleet, ValkeyServer, InboxServer, AsyncFedsvcClient]]:
    """Waits for hosts that are paused; no worker runs."""
    (directory / "valkey").mkdir()
    with (
        valkey_server(directory / "valkey", extra=("--maxmemory", "1gb")) as valkey,
        fleet(directory, REDIS_URL=valkey.url, **SETTINGS) as site,
    ):
        server = site.server()
        await asyncio.to_thread(server.ready)
        async with (
            InboxServer(addresses=ADDRESSES) as inboxes,
            AsyncFedsvcClient(server.grpc, timeout=30) as client,
        ):
            for address in ADDRESSES:
                await client.pause_host(address, duration=3600)
            urls = [inboxes.url(address) for address in ADDRESSES]
            for start in range(0, ACTIVITIES, 50):
                await asyncio.gather(
                    *(
                        client.fan_out(activity(n), urls, private_key=pem, key_id=KEY_ID)
                        for n in range(start, start + 50)
                    )
                )
            yield site, valkey, inboxes, client


async def test_workers_killed_while_they_move_backlogs_to_sql_and_back_lose_nothing(
    tmp_path: Path, rsa_pem: str
) -> None:
    async with backlog(tmp_path, rsa_pem) as (site, valkey, inboxes, client):
        await sent_away(site, valkey, kills=3)
        for address in ADDRESSES:
            await client.resume_host(address)
        for kill in range(1, 4):
            worker = site.worker()
            await until(lambda most=MOST - MOST * kill // 4: spilled(valkey) <= most)  # type: ignore[misc]
            worker.kill()
        site.worker()
        await inboxes.wait_for(TOTAL)
        await all_delivered(client, TOTAL)


async def test_what_is_in_sql_arrives_although_redis_has_lost_its_memory(
    tmp_path: Path, rsa_pem: str
) -> None:
    async with backlog(tmp_path, rsa_pem) as (site, valkey, inboxes, client):
        await sent_away(site, valkey, kills=0)
        away = spilled(valkey)
        with valkey.client() as redis:
            redis.flushall()
        # It brings its key with it, which the others need.
        await client.queue_activity(
            activity(ACTIVITIES), inboxes.url(ADDRESSES[0]), private_key=rsa_pem, key_id=KEY_ID
        )
        site.worker()
        await inboxes.wait_for(away + 1)
        await all_delivered(client, away + 1)
        assert set(inboxes.received.values()) == {1}
