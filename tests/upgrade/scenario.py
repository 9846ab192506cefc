"""Deliveries in every state, made by calls alone, so that any version can be asked to make them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fedsvc_client import AsyncFedsvcClient, DeliveryState, Schedule, ScheduledFanOut
from servers.unused_ports import unused_ports
from servers.valkey import valkey_server

from fedsvc import __version__
from fedsvc.queue.format import FORMAT
from upgrade.stage import (
    DOWN,
    FIT,
    FLAKY,
    GONE,
    PATIENCE,
    PAUSED,
    PORT,
    SETTINGS,
    SLOW,
    Inboxes,
    Stage,
    kill_hard,
)
from upgrade.stored import MANIFEST, save_archive, save_queue

ACTOR = "https://me.example/u/ada"
KEY_ID = f"{ACTOR}#main-key"
REGISTERED = "https://me.example/u/eve#main-key"
#: seconds from the moment the data is saved: what is scheduled is due, what expires has expired
DUE_S, EXPIRES_S, LATER_S = 1800, 1200, 3600

#: deliveries to the paused host, most of which go to SQL
MANY = 130


def new_key() -> str:
    private = ed25519.Ed25519PrivateKey.generate()
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def activity(name: str, kind: str = "Create", **more: Any) -> dict[str, Any]:
    object_id = f"https://me.example/o/{name}"
    return {"id": f"https://me.example/a/{name}", "type": kind, "actor": ACTOR, "object": object_id} | more


def url(host: str) -> str:
    return f"http://{host}:{PORT}/inbox"


async def until(what: Callable[[], Awaitable[bool]], name: str) -> None:
    end = time.monotonic() + PATIENCE
    while not await what():
        assert time.monotonic() < end, f"it never comes to pass: {name}"
        await asyncio.sleep(0.05)


class Deliveries:
    """Those that were made, by what is special about each."""

    def __init__(self, client: AsyncFedsvcClient, key: str) -> None:
        self.client = client
        self.key = key
        self.ids: dict[str, str] = {}

    async def make(self, name: str, host: str, **options: Any) -> str:
        options = {"private_key": self.key, "key_id": KEY_ID} | options
        made = await self.client.queue_activity(activity(name), url(host), **options)
        self.ids[name] = made.delivery_id
        return made.delivery_id

    async def reach(self, name: str, state: DeliveryState, attempts: int = 0) -> None:
        async def there() -> bool:
            delivery = await self.client.get_delivery(self.ids[name])
            return delivery.state is state and delivery.attempts >= attempts

        await until(there, f"{name} is {state}")


async def with_a_worker(made: Deliveries, inboxes: Inboxes) -> None:
    """What somebody has to have tried."""
    client = made.client
    await client.put_key(REGISTERED, made.key)
    await client.update_host_policy(PAUSED, max_in_flight=3, rate_per_second=50.0, burst=5)
    await client.pause_host(PAUSED, reason="moving")
    await made.make("delivered", FIT)
    await made.reach("delivered", DeliveryState.DELIVERED)
    await made.make("dead", GONE)
    await made.reach("dead", DeliveryState.DEAD)
    await made.make("retry", FLAKY)
    await made.reach("retry", DeliveryState.RETRY, 1)
    for number in range(5):  # failures in a row open its circuit
        await made.make(f"down-{number}", DOWN)
        await made.reach(f"down-{number}", DeliveryState.RETRY, 1)
    await made.make("behind-circuit", DOWN)
    await made.reach("behind-circuit", DeliveryState.PARKED)
    await made.make("paused", PAUSED)
    await made.reach("paused", DeliveryState.PARKED)
    many = [f"{url(PAUSED)}/{number}" for number in range(MANY)]
    await client.fan_out(activity("many"), many, private_key=made.key, key_id=KEY_ID)
    await made.make("in-flight", SLOW)
    async with asyncio.timeout(PATIENCE):
        while SLOW not in inboxes.asked:
            await asyncio.sleep(0.05)

    async def archived() -> bool:
        return (await client.get_queue_stats()).archive_backlog == 0

    await until(archived, "all that ended is archived")


async def without_a_worker(made: Deliveries) -> None:
    """What waits for one, and what ends without one."""
    client, now = made.client, datetime.now(UTC)
    await made.make("ready", FIT)
    await made.make("registered-key", FIT, request_id="registered", private_key=None, key_id=REGISTERED)
    await made.make("ordered-1", FIT, ordering_key="thread")
    await made.make("ordered-2", FIT, ordering_key="thread")
    await made.make("scheduled", FIT, not_before=now + timedelta(seconds=DUE_S))
    await made.make("expiring", FIT, expire_time=now + timedelta(seconds=EXPIRES_S))
    await made.make("superseded", FIT, supersede_key="profile")
    await made.make("superseding", FIT, supersede_key="profile")
    await made.make("cancelled", FIT)
    await client.cancel_deliveries(delivery_ids=[made.ids["cancelled"]])
    template = json.dumps(activity("weekly-{run_id}", "Announce")).encode()
    await client.create_schedule(
        Schedule("weekly", cron="0 9 * * MON", fan_out=ScheduledFanOut(template, (url(FIT),), REGISTERED))
    )
    await client.create_schedule(Schedule("tidy", interval=timedelta(days=30), task="CLEANUP", paused=True))


async def record(target: Path, scratch: Path) -> None:
    """Everything above by this version, saved in `target`."""
    target.mkdir(parents=True, exist_ok=True)
    (scratch / "valkey").mkdir()
    extra = ("--aof-use-rdb-preamble", "no", "--maxmemory", "1gb", "--maxmemory-policy", "noeviction")
    with valkey_server(scratch / "valkey", appendonly=True, extra=extra) as server:
        database = scratch / "archive.db"
        stage = Stage(scratch, SETTINGS | {"REDIS_URL": server.url, "DATABASE_URL": f"sqlite:///{database}"})
        await stage.migrate()
        ports, key = unused_ports(3), new_key()
        async with AsyncExitStack() as stack:
            await stage.server(stack, ports)
            client = await stack.enter_async_context(stage.client(ports))
            inboxes = await stack.enter_async_context(Inboxes(troubled=True))
            made = Deliveries(client, key)
            # As if memory were short: what is parked for a paused host goes to SQL.
            short = {"FEDSVC_MEMORY_WARNING": "0.0001", "FEDSVC_SPILL_AFTER": "0"}
            worker = await stage.worker(stack, ports[2], None, **short)
            await with_a_worker(made, inboxes)

            async def spilled() -> bool:
                with server.client() as redis:
                    return any(redis.exists(f"fedsvc:{{p{n}}}:spills") for n in range(4))

            await until(spilled, "something is in SQL")
            kill_hard(worker)
            await without_a_worker(made)
            deliveries = {}
            for name, id in made.ids.items():
                delivery = await client.get_delivery(id)
                deliveries[name] = {"id": id, "state": str(delivery.state)}
        save_queue(server, scratch / "valkey", target)
        save_archive(database, target)
    manifest = {
        "version": __version__,
        "format": FORMAT,
        "saved_ms": int(time.time() * 1000),
        "deliveries": deliveries,
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
