"""Real processes get real SIGKILLs in the middle of their work; nothing that was accepted is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fedsvc_client import AsyncFedsvcClient, FedsvcClient
from servers.activities import activity
from servers.inbox import InboxServer
from servers.processes import Fedsvc

KEY_ID = "https://me.example/u/ada#main-key"
ADDRESSES = tuple(f"127.78.0.{i}" for i in range(1, 11))
ACTIVITIES = 200
TOTAL = len(ADDRESSES) * ACTIVITIES
SETTINGS = {
    "FEDSVC_ALLOW_HTTP": "true",
    "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
    "FEDSVC_LEASE": "2",
    "FEDSVC_RETRY_SCALE": "0.01",
    "FEDSVC_SHUTDOWN_GRACE": "5",
    # few enough that a kill always finds most of the work still to be done
    "FEDSVC_CONCURRENCY": "40",
}


@contextmanager
def dev(directory: Path, port: int) -> Iterator[Fedsvc]:
    directory.mkdir(exist_ok=True)
    arguments = ("dev", "--data-dir", str(directory / "data"), "--listen", f"127.0.0.1:{port}")
    with Fedsvc(directory, *arguments, "--http-listen", "127.0.0.1:0", settings=SETTINGS) as fedsvc:
        yield fedsvc


async def queue_all(client: AsyncFedsvcClient, inboxes: InboxServer, pem: str) -> None:
    """200 activities to 10 inboxes."""
    urls = [inboxes.url(address) for address in ADDRESSES]
    for start in range(0, ACTIVITIES, 20):
        answers = await asyncio.gather(
            *(
                client.fan_out(activity(n), urls, private_key=pem, key_id=KEY_ID)
                for n in range(start, start + 20)
            )
        )
        assert sum(answer.accepted for answer in answers) == 20 * len(urls)


async def settled(client: AsyncFedsvcClient) -> Any:
    """The figures once nothing is pending."""
    async with asyncio.timeout(60):
        while (stats := await client.get_queue_stats()).pending:
            await asyncio.sleep(0.05)
    return stats


def whole(inboxes: InboxServer) -> None:
    expected = {
        (a, json.dumps(activity(n), separators=(",", ":")).encode())
        for a in ADDRESSES
        for n in range(ACTIVITIES)
    }
    assert set(inboxes.received) == expected


def pids_of(fedsvc: Fedsvc, command: str) -> list[int]:
    return [pid for pid, line in fedsvc.children().items() if f" {command} " in f"{line} "]


async def test_a_worker_killed_in_the_middle_of_2000_deliveries_loses_none(
    tmp_path: Path, free_port: int, rsa_pem: str
) -> None:
    with dev(tmp_path / "dev", free_port) as fedsvc:
        target, _ = await asyncio.to_thread(fedsvc.ready)
        async with InboxServer(addresses=ADDRESSES) as inboxes, AsyncFedsvcClient(target) as client:
            await queue_all(client, inboxes, rsa_pem)
            in_flight = 0
            for share in (4, 3, 2):
                await inboxes.wait_for(TOTAL // share - 100)
                (worker,) = await wait_for_pids(fedsvc, "worker-process")
                os.kill(worker, signal.SIGSTOP)  # nothing more is sent while it is counted
                in_flight += (await client.get_queue_stats()).in_flight
                os.kill(worker, signal.SIGKILL)
            await inboxes.wait_for(TOTAL)
            stats = await settled(client)
        whole(inboxes)
        assert (stats.accepted, stats.delivered, stats.conserved) == (TOTAL, TOTAL, True)
        # at most what was in flight at each of the three kills was sent twice
        assert sum(inboxes.received.values()) - TOTAL <= in_flight


async def test_dev_killed_in_the_middle_goes_on_with_the_same_queue_when_started_again(
    tmp_path: Path, free_port: int, rsa_pem: str
) -> None:
    async with InboxServer(addresses=ADDRESSES) as inboxes:
        with dev(tmp_path / "dev", free_port) as fedsvc:
            target, _ = await asyncio.to_thread(fedsvc.ready)
            async with AsyncFedsvcClient(target) as client:
                await queue_all(client, inboxes, rsa_pem)
            await inboxes.wait_for(TOTAL // 4)
            below = fedsvc.children()
            fedsvc.kill()
            for pid in below:  # nothing of it survives its parent
                await gone(pid)
        assert len(inboxes.received) < TOTAL
        with dev(tmp_path / "dev", free_port) as fedsvc:
            target, _ = await asyncio.to_thread(fedsvc.ready)
            async with AsyncFedsvcClient(target) as client:
                await inboxes.wait_for(TOTAL)
                stats = await settled(client)
        whole(inboxes)
        assert (stats.accepted, stats.delivered, stats.conserved) == (TOTAL, TOTAL, True)


async def test_everything_killed_at_once_loses_nothing(tmp_path: Path, free_port: int, rsa_pem: str) -> None:
    async with InboxServer(addresses=ADDRESSES) as inboxes:
        with dev(tmp_path / "dev", free_port) as fedsvc:
            target, _ = await asyncio.to_thread(fedsvc.ready)
            async with AsyncFedsvcClient(target) as client:
                await queue_all(client, inboxes, rsa_pem)
            await inboxes.wait_for(TOTAL // 4)
            for pid in (fedsvc.process.pid, *fedsvc.children()):
                os.kill(pid, signal.SIGKILL)
            fedsvc.process.wait()
        with dev(tmp_path / "dev", free_port) as fedsvc:
            target, _ = await asyncio.to_thread(fedsvc.ready)
            async with AsyncFedsvcClient(target) as client:
                await inboxes.wait_for(TOTAL)
                stats = await settled(client)
        whole(inboxes)
        assert (stats.accepted, stats.delivered, stats.conserved) == (TOTAL, TOTAL, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_dev_told_to_stop_ends_in_order_and_sends_nothing_twice(
    tmp_path: Path, free_port: int, rsa_pem: str, number: int
) -> None:
    async with InboxServer(addresses=ADDRESSES) as inboxes:
        with dev(tmp_path / "dev", free_port) as fedsvc:
            target, _ = await asyncio.to_thread(fedsvc.ready)
            async with AsyncFedsvcClient(target) as client:
                await queue_all(client, inboxes, rsa_pem)
            await inboxes.wait_for(TOTAL // 4)
            assert await asyncio.to_thread(fedsvc.stop, number) == 0
        assert len(inboxes.received) < TOTAL
        with dev(tmp_path / "dev", free_port) as fedsvc:
            target, _ = await asyncio.to_thread(fedsvc.ready)
            async with AsyncFedsvcClient(target) as client:
                await inboxes.wait_for(TOTAL)
                stats = await settled(client)
        whole(inboxes)
        assert set(inboxes.received.values()) == {1}
        assert (stats.delivered, stats.conserved) == (TOTAL, True)


def test_two_on_one_data_directory_are_refused(tmp_path: Path, free_port: int) -> None:
    with dev(tmp_path / "dev", free_port) as fedsvc:
        target, _ = fedsvc.ready()
        with FedsvcClient(target) as client:
            assert client.get_queue_stats().accepted == 0
        (tmp_path / "second").mkdir()
        arguments = ("dev", "--data-dir", str(tmp_path / "dev" / "data"), "--listen", "127.0.0.1:0")
        with Fedsvc(tmp_path / "second", *arguments, settings=SETTINGS) as second:
            assert second.process.wait(30) == 1
            assert "is in use by another fedsvc dev" in second.stderr


async def wait_for_pids(fedsvc: Fedsvc, command: str) -> list[int]:
    async with asyncio.timeout(20):
        while not (pids := pids_of(fedsvc, command)):
            await asyncio.sleep(0.02)
    return pids


async def gone(pid: int) -> None:
    """Until the process has ended (or is a zombie that its new parent has not collected)."""
    async with asyncio.timeout(30):
        while Path(f"/proc/{pid}").exists():
            try:
                if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                    return
            except OSError:
                return
            await asyncio.sleep(0.02)


async def test_dev_starts_a_valkey_that_was_killed_again_and_loses_nothing(
    tmp_path: Path, free_port: int, rsa_pem: str
) -> None:
    async with InboxServer(addresses=ADDRESSES) as inboxes:
        with dev(tmp_path / "dev", free_port) as fedsvc:
            target, _ = await asyncio.to_thread(fedsvc.ready)
            async with AsyncFedsvcClient(target) as client:
                await queue_all(client, inboxes, rsa_pem)
                await inboxes.wait_for(TOTAL // 4)
                (valkey,) = [pid for pid, line in fedsvc.children().items() if "unixsocket:" in line]
                os.kill(valkey, signal.SIGKILL)
                await inboxes.wait_for(TOTAL)
                stats = await settled(client)
            assert (stats.delivered, stats.conserved) == (TOTAL, True)
            assert await asyncio.to_thread(fedsvc.stop) == 0
        whole(inboxes)


def test_a_server_of_dev_that_is_killed_comes_back_where_its_callers_know_it(tmp_path: Path) -> None:
    with Fedsvc(tmp_path, "dev", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0") as fedsvc:
        target, _ = fedsvc.ready()
        (server,) = pids_of(fedsvc, "server")
        os.kill(server, signal.SIGKILL)
        with FedsvcClient(target, timeout=60) as client:
            assert client.get_queue_stats().conserved


async def test_a_dev_told_to_stop_while_it_starts_ends_well_and_without_noise(
    tmp_path: Path, free_port: int
) -> None:
    with dev(tmp_path / "dev", free_port) as fedsvc:
        await wait_for_pids(fedsvc, "server")
        assert await asyncio.to_thread(fedsvc.stop) == 0
    assert fedsvc.lines == []
    assert "never retrieved" not in fedsvc.stderr
    assert "Traceback" not in fedsvc.stderr
