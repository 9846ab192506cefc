"""Redis and SQL go away and come back; no process of ours needs a restart, and health says so meanwhile."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fedsvc_client import AsyncFedsvcClient, DeliveryState, FedsvcError, ResourceExhausted, Unavailable
from servers.inbox import InboxServer
from servers.migrated import prepare
from servers.processes import Fedsvc
from servers.unused_ports import unused_ports
from servers.valkey import ValkeyServer, valkey_server

from fedsvc.config import Settings

KEY_ID = "https://me.example/u/ada#main-key"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class System:
    """A server and a worker of their own on a Valkey of its own."""

    def __init__(
        self, directory: Path, stack: ExitStack, settings: dict[str, str], grpc: int, http: tuple[int, int]
    ) -> None:
        self.directory = directory
        self.target = f"127.0.0.1:{grpc}"
        self.http = http
        (directory / "valkey").mkdir()
        self.valkey: ValkeyServer = stack.enter_context(valkey_server(directory / "valkey", appendonly=True))
        self.settings = {
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": f"sqlite:///{directory / 'archive.db'}",
            "FEDSVC_ALLOW_HTTP": "true",
            "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
            "FEDSVC_LEASE": "2",
            "FEDSVC_REDIS_TIMEOUT": "1",
            **settings,
        }
        for name in ("server", "worker"):
            (directory / name).mkdir()
        prepare(Settings.from_environment(self.settings))
        self.server = stack.enter_context(
            Fedsvc(
                directory / "server",
                "server",
                *("--listen", self.target, "--http-listen", f"127.0.0.1:{http[0]}"),
                settings=self.settings,
            )
        )
        self.worker = stack.enter_context(
            Fedsvc(
                directory / "worker",
                "worker",
                "--http-listen",
                f"127.0.0.1:{http[1]}",
                settings=self.settings,
            )
        )

    def is_ready(self, which: int) -> bool:
        return self.says_well(which, "readyz")

    def is_alive(self, which: int) -> bool:
        return self.says_well(which, "healthz")

    def says_well(self, which: int, path: str) -> bool:
        try:
            with DIRECT.open(f"http://127.0.0.1:{self.http[which]}/{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    async def until_ready(self, ready: bool, which: tuple[int, ...] = (0, 1)) -> None:
        async with asyncio.timeout(40):
            while any([await asyncio.to_thread(self.is_ready, w) is not ready for w in which]):
                await asyncio.sleep(0.05)


@pytest.fixture
def system(tmp_path: Path, encryption_key: str) -> Iterator[System]:
    grpc, *http = unused_ports(3)
    with ExitStack() as stack:
        settings = {"FEDSVC_KEY_ENCRYPTION_KEYS": encryption_key}
        yield System(tmp_path, stack, settings, grpc, (http[0], http[1]))


def activity(number: int) -> dict[str, Any]:
    actor = "https://me.example/u/ada"
    return {
        "id": f"https://me.example/{number}",
        "type": "Like",
        "actor": actor,
        "object": "https://o.example/1",
    }


async def delivered(client: AsyncFedsvcClient, delivery_id: str) -> None:
    async with asyncio.timeout(40):
        while True:
            try:
                if (await client.get_delivery(delivery_id)).state is DeliveryState.DELIVERED:
                    return
            except Unavailable:
                pass
            await asyncio.sleep(0.05)


async def test_redis_goes_away_and_comes_back(system: System, rsa_pem: str) -> None:
    await system.until_ready(True)
    async with InboxServer() as inbox, AsyncFedsvcClient(system.target, timeout=3) as client:

        async def queue(number: int, **how: Any) -> str:
            queued = await client.queue_activity(
                activity(number), inbox.url(), private_key=rsa_pem, key_id=KEY_ID, **how
            )
            return queued.delivery_id

        await delivered(client, await queue(1))
        system.valkey.stop()
        with pytest.raises(Unavailable) as refused:
            await queue(2, timeout=2)
        assert refused.value.reason == "QUEUE_UNAVAILABLE", repr(refused.value)
        await system.until_ready(False)
        # or a platform would start everything anew, which would not bring Redis back
        assert [await asyncio.to_thread(system.is_alive, which) for which in (0, 1)] == [True, True]
        system.valkey.start()
        await system.until_ready(True)
        await delivered(client, await queue(2, request_id=refused.value.request_id))
        stats = await client.get_queue_stats()
        assert (stats.accepted, stats.delivered, stats.conserved) == (2, 2, True)
        assert system.server.process.poll() is None
        assert system.worker.process.poll() is None


async def test_redis_comes_back_empty(system: System, rsa_pem: str) -> None:
    await system.until_ready(True)
    async with InboxServer() as inbox, AsyncFedsvcClient(system.target) as client:
        for number in (1, 2):
            queued = await client.queue_activity(
                activity(number), inbox.url(), private_key=rsa_pem, key_id=KEY_ID
            )
            await delivered(client, queued.delivery_id)
            with system.valkey.client() as redis:
                redis.flushall()
        queued = await client.queue_activity(activity(1), inbox.url(), private_key=rsa_pem, key_id=KEY_ID)
        await delivered(client, queued.delivery_id)
        await system.until_ready(True)


async def test_a_redis_that_hangs_is_told_as_unavailable_before_the_caller_gives_up(
    system: System, rsa_pem: str
) -> None:
    await system.until_ready(True)
    async with InboxServer() as inbox, AsyncFedsvcClient(system.target) as client:
        system.valkey.signal(signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable) as refused:
                await client.queue_activity(
                    activity(1), inbox.url(), private_key=rsa_pem, key_id=KEY_ID, timeout=2
                )
            assert refused.value.reason == "QUEUE_UNAVAILABLE"
            await system.until_ready(False)
        finally:
            system.valkey.signal(signal.SIGCONT)
        await system.until_ready(True)
        queued = await client.queue_activity(activity(1), inbox.url(), private_key=rsa_pem, key_id=KEY_ID)
        await delivered(client, queued.delivery_id)


async def test_a_locked_archive_holds_no_delivery_up_and_catches_up(system: System, rsa_pem: str) -> None:
    await system.until_ready(True)
    path = system.directory / "archive.db"
    async with InboxServer() as inbox, AsyncFedsvcClient(system.target) as client:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        try:
            for number in range(20):
                queued = await client.queue_activity(
                    activity(number), inbox.url(), private_key=rsa_pem, key_id=KEY_ID
                )
            await inbox.wait_for(20)
            await delivered(client, queued.delivery_id)
        finally:
            other.execute("ROLLBACK")
        async with asyncio.timeout(30):
            while (await client.get_queue_stats()).archive_backlog:
                await asyncio.sleep(0.05)
        assert other.execute("SELECT count(*) FROM deliveries").fetchone() == (20,)
        other.close()


async def test_a_redis_that_only_reads_is_not_ready_and_all_goes_on_when_it_writes_again(
    system: System, rsa_pem: str
) -> None:
    """As after a failover that left us with the replica."""
    await system.until_ready(True)
    async with InboxServer() as inbox, AsyncFedsvcClient(system.target) as client:
        with system.valkey.client() as redis:
            redis.execute_command("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(Unavailable):
                await client.queue_activity(
                    activity(1), inbox.url(), private_key=rsa_pem, key_id=KEY_ID, timeout=2
                )
            await system.until_ready(False)
            redis.execute_command("REPLICAOF", "NO", "ONE")
        await system.until_ready(True)
        queued = await client.queue_activity(activity(2), inbox.url(), private_key=rsa_pem, key_id=KEY_ID)
        await delivered(client, queued.delivery_id)
        assert (await client.get_queue_stats()).conserved


async def test_a_full_redis_takes_nothing_new_and_finishes_what_it_has(system: System, rsa_pem: str) -> None:
    await system.until_ready(True)
    async with InboxServer() as inbox, AsyncFedsvcClient(system.target) as client:
        soon = datetime.now(UTC) + timedelta(seconds=2)
        queued = await client.queue_activity(
            activity(1), inbox.url(), private_key=rsa_pem, key_id=KEY_ID, not_before=soon
        )
        with system.valkey.client() as redis:
            redis.config_set("maxmemory-policy", "noeviction")
            redis.config_set("maxmemory", 1024 * 1024)
            await delivered(client, queued.delivery_id)
            with pytest.raises(FedsvcError) as refused:
                await client.queue_activity(
                    activity(2), inbox.url(), private_key=rsa_pem, key_id=KEY_ID, timeout=2
                )
            assert isinstance(refused.value, (Unavailable, ResourceExhausted))
            redis.config_set("maxmemory", 0)
        await system.until_ready(True)
        async with asyncio.timeout(20):
            while True:  # the server looks at the memory from time to time
                try:
                    queued = await client.queue_activity(
                        activity(2), inbox.url(), private_key=rsa_pem, key_id=KEY_ID
                    )
                    break
                except ResourceExhausted:
                    await asyncio.sleep(0.1)
        await delivered(client, queued.delivery_id)


async def test_a_slow_redis_only_makes_it_slow(system: System, rsa_pem: str) -> None:
    await system.until_ready(True)
    async with InboxServer() as inbox, AsyncFedsvcClient(system.target) as client:
        with system.valkey.client() as redis:
            for number in range(8):
                redis.client_pause(300)  # milliseconds for which every command waits
                await client.queue_activity(activity(number), inbox.url(), private_key=rsa_pem, key_id=KEY_ID)
        await inbox.wait_for(8)
        assert max(inbox.received.values()) == 1
        await system.until_ready(True)


@pytest.mark.parametrize("hours", [3, -3])
async def test_a_clock_that_steps_loses_nothing_and_sends_nothing_twice(
    system: System, rsa_pem: str, hours: int
) -> None:
    await system.until_ready(True)
    async with InboxServer() as inbox, AsyncFedsvcClient(system.target) as client:
        ids = []
        for number in range(40):
            if number == 20:
                with system.valkey.client() as redis:
                    for partition in range(16):
                        redis.set(f"fedsvc:{{p{partition}}}:clock-shift", hours * 3_600_000)
            queued = await client.queue_activity(
                activity(number), inbox.url(), private_key=rsa_pem, key_id=KEY_ID
            )
            ids.append(queued.delivery_id)
        for delivery_id in ids:
            await delivered(client, delivery_id)
        assert len(set(ids)) == 40
        assert max(inbox.received.values()) == 1
        await system.until_ready(True)
        stats = await client.get_queue_stats()
        assert (stats.delivered, stats.conserved) == (40, True)
