"""Server, worker and doctor as operators run them, on a Redis and a database of theirs."""

from __future__ import annotations

import asyncio
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fedsvc_client import AsyncFedsvcClient, DeliveryState, Schedule
from servers.inbox import InboxServer
from servers.postgres import PostgresServer
from servers.processes import Fedsvc, run
from servers.unused_ports import unused_ports
from servers.valkey import ValkeyServer, valkey_server

KEY_ID = "https://me.example/u/ada#main-key"


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[ValkeyServer]:
    (tmp_path / "valkey").mkdir()
    with valkey_server(tmp_path / "valkey", appendonly=True) as server:
        yield server


@pytest.fixture
def settings(
    durable: ValkeyServer, postgres: PostgresServer, tmp_path: Path, encryption_key: str
) -> dict[str, str]:
    file = tmp_path / "keys"
    file.write_text(encryption_key)
    file.chmod(0o600)
    return {
        "REDIS_URL": durable.url,
        "DATABASE_URL": postgres.url,
        "FEDSVC_KEY_ENCRYPTION_KEYS_FILE": str(file),
        "FEDSVC_ALLOW_HTTP": "true",
        "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
    }


def activity(number: int) -> dict[str, Any]:
    actor = "https://me.example/u/ada"
    return {
        "id": f"https://me.example/p/{number}",
        "type": "Create",
        "actor": actor,
        "object": "https://o.example/1",
    }


async def until_ready(url: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask() -> bool:
        try:
            with direct.open(url, timeout=5):
                return True
        except OSError:
            return False

    async with asyncio.timeout(40):
        while not await asyncio.to_thread(ask):
            await asyncio.sleep(0.05)


async def test_two_worker_processes_share_the_work_and_what_is_archived_is_shown_as_before(
    settings: dict[str, str], tmp_path: Path, rsa_pem: str
) -> None:
    grpc, http, workers = unused_ports(3)
    settings["FEDSVC_OUTCOME_RETENTION"] = "1"
    assert run(settings, "migrate").returncode == 0
    addresses = tuple(f"127.81.0.{i}" for i in range(1, 21))
    with ExitStack() as stack:
        for name in ("server", "worker"):
            (tmp_path / name).mkdir()
        listen = ("--listen", f"127.0.0.1:{grpc}", "--http-listen", f"127.0.0.1:{http}")
        server = stack.enter_context(Fedsvc(tmp_path / "server", "server", *listen, settings=settings))
        arguments = ("--processes", "2", "--http-listen", f"127.0.0.1:{workers}")
        worker = stack.enter_context(Fedsvc(tmp_path / "worker", "worker", *arguments, settings=settings))
        await until_ready(f"http://127.0.0.1:{http}/readyz")
        await until_ready(f"http://127.0.0.1:{workers}/readyz")
        async with (
            InboxServer(addresses=addresses) as inbox,
            AsyncFedsvcClient(f"127.0.0.1:{grpc}") as client,
        ):
            urls = [inbox.url(address) for address in addresses]
            for number in range(10):
                await client.fan_out(activity(number), urls, private_key=rsa_pem, key_id=KEY_ID)
            await inbox.wait_for(200)
            async with asyncio.timeout(30):
                while (stats := await client.get_queue_stats()).delivered < 200 or stats.archive_backlog:
                    await asyncio.sleep(0.05)
            assert (stats.consumers, stats.conserved) == (2, True)
            async with asyncio.timeout(30):  # they tell once a second; of both processes together
                told = await asyncio.to_thread(counted, f"http://127.0.0.1:{workers}/metrics")
                while told["fedsvc_deliveries_total"] < 200:
                    await asyncio.sleep(0.1)
                    told = await asyncio.to_thread(counted, f"http://127.0.0.1:{workers}/metrics")
            assert told["fedsvc_deliveries_total"] == 200
            assert told["fedsvc_enqueue_to_first_attempt_seconds_count"] == 200
            assert told["fedsvc_build_info"] == 1
            before = [d async for d in client.iterate_deliveries("https://me.example/p/0")]
            # outcomes leave Redis a second after they were archived; nobody should notice
            async with asyncio.timeout(30):
                while not held_by_the_archive_only(settings):
                    await asyncio.sleep(0.1)
            after = [d async for d in client.iterate_deliveries("https://me.example/p/0")]
            assert after == before
            assert len(after) == 20
            shown = await client.get_delivery(before[0].delivery_id)
            assert shown == before[0]
            page = await client.list_deliveries("https://me.example/p/0", page_size=-1)
            assert page.summary == {DeliveryState.DELIVERED: 20}
            again = await client.queue_activity(activity(0), urls[0], private_key=rsa_pem, key_id=KEY_ID)
            assert again.duplicate
            assert again.delivery.state is DeliveryState.DELIVERED
        assert await asyncio.to_thread(worker.stop) == 0
        assert await asyncio.to_thread(server.stop) == 0


def counted(url: str) -> Counter[str]:
    """Each metric's samples, of all labels together."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    sums: Counter[str] = Counter()
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            sums[name.partition("{")[0]] += int(float(value))
    return sums


def held_by_the_archive_only(settings: dict[str, str]) -> bool:
    import redis

    with redis.Redis.from_url(settings["REDIS_URL"]) as client:
        return not client.keys("fedsvc:*:deliveries")


def test_a_worker_on_a_queue_with_other_partitions_does_not_start(
    settings: dict[str, str], durable: ValkeyServer
) -> None:
    with durable.client() as redis:
        redis.set("fedsvc:partitions", 5)
    for command in ("server", "worker-process"):
        done = run(settings | {"FEDSVC_LISTEN": "127.0.0.1:0", "FEDSVC_HTTP_LISTEN": "127.0.0.1:0"}, command)
        assert done.returncode == 1
        assert "FEDSVC_PARTITIONS: this queue was made with 5 partitions, not 16" in done.stderr


async def test_a_worker_whose_own_clock_is_ahead_of_redis_runs_nothing_early(
    settings: dict[str, str], durable: ValkeyServer, tmp_path: Path, rsa_pem: str
) -> None:
    grpc, http = unused_ports(2)
    assert run(settings, "migrate").returncode == 0
    listen = ("--listen", f"127.0.0.1:{grpc}", "--http-listen", f"127.0.0.1:{http}")
    with ExitStack() as stack:
        stack.enter_context(Fedsvc(tmp_path, "server", *listen, settings=settings))
        await until_ready(f"http://127.0.0.1:{http}/readyz")
        async with InboxServer() as inbox, AsyncFedsvcClient(f"127.0.0.1:{grpc}") as client:
            made = await client.create_schedule(
                Schedule("tidy", interval=timedelta(seconds=1), task="cleanup")
            )
            assert made.next_run_time is not None
            with durable.client() as redis:
                for partition in range(16):
                    redis.set(f"fedsvc:{{p{partition}}}:clock-shift", -10 * 86_400_000)
            async with asyncio.timeout(20):
                while datetime.now(UTC) <= made.next_run_time:
                    await asyncio.sleep(0.05)
            (tmp_path / "worker").mkdir()
            worker = ("worker", "--http-listen", "127.0.0.1:0")
            stack.enter_context(Fedsvc(tmp_path / "worker", *worker, settings=settings))
            await client.queue_activity(activity(1), inbox.url(), private_key=rsa_pem, key_id=KEY_ID)
            await inbox.wait_for(1)
            assert (await client.get_schedule("tidy")).next_run_time == made.next_run_time
