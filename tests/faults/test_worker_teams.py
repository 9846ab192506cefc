"""Real workers that share the partitions: who speaks to which host, and over how many connections."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import pytest
from fedsvc_client import AsyncFedsvcClient
from servers import certificates
from servers.activities import activity
from servers.fleet import Fleet, Member, fleet
from servers.valkey import ValkeyServer

from fedsvc.domain.inbox import partition_of
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link

KEY_ID = "https://me.example/u/ada#main-key"
HOSTS = 200
PARTITIONS = 16
ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
LEASE_S = 4


def address(number: int) -> str:
    return f"127.82.{number // 250}.{number % 250 + 1}"


class Hosts:
    """Inboxes with TLS that write down who comes, over how many connections."""

    def __init__(self) -> None:
        self.port = 0
        self.handshakes: Counter[str] = Counter()
        #: host -> name of a worker -> requests
        self.callers: dict[str, Counter[str]] = defaultdict(Counter)
        self._arrived = asyncio.Condition()

    @property
    def requests(self) -> int:
        return sum(sum(counts.values()) for counts in self.callers.values())

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = writer.get_extra_info("sockname")[0]
        self.handshakes[host] += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}
                await reader.readexactly(int(fields["content-length"]))
                async with self._arrived:
                    self.callers[host][fields["user-agent"]] += 1
                    self._arrived.notify_all()
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def wait_for(self, requests: int) -> None:
        async with asyncio.timeout(60), self._arrived:
            await self._arrived.wait_for(lambda: self.requests >= requests)

    def urls(self) -> list[str]:
        return [f"https://{address(n)}:{self.port}/inbox" for n in range(HOSTS)]


@asynccontextmanager
async def hosts() -> AsyncIterator[Hosts]:
    made = Hosts()
    certificate = certificates.authority().certify(*(address(n) for n in range(HOSTS)))
    context = certificates.server_context(certificate)
    server = await asyncio.start_server(
        made.serve, "0.0.0.0", 0, ssl=context, backlog=1024, ssl_handshake_timeout=30
    )
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def made_fleet(
    directory: Path, valkey: ValkeyServer, namespace: str, **settings: str
) -> AbstractContextManager[Fleet]:
    return fleet(
        directory,
        REDIS_URL=valkey.url,
        FEDSVC_NAMESPACE=namespace,
        FEDSVC_PARTITIONS=str(PARTITIONS),
        FEDSVC_CA_FILE=str(certificates.authority().file),
        FEDSVC_CONNECT_TIMEOUT="30",
        FEDSVC_DELIVERY_TIMEOUT="60",
        FEDSVC_RETRY_SCALE="0.01",
        **settings,
    )


async def divided(workers: list[Member]) -> None:
    """Until all have found each other."""
    share = PARTITIONS // len(workers)
    for worker in workers:
        await asyncio.to_thread(worker.until, lambda told: told.get("partitions") == share)


@pytest.mark.alone
async def test_two_workers_share_the_hosts_and_each_is_spoken_to_by_one_over_one_connection(
    tmp_path: Path, valkey: ValkeyServer, namespace: str, rsa_pem: str
) -> None:
    with made_fleet(tmp_path, valkey, namespace, FEDSVC_LEASE="60") as team:
        server = team.server()
        workers = [team.worker(FEDSVC_USER_AGENT=name) for name in ("one", "two")]
        await asyncio.to_thread(server.ready)
        async with hosts() as remote, AsyncFedsvcClient(server.grpc) as client:
            await divided(workers)
            for number in range(4):
                answer = await client.fan_out(
                    activity(number), remote.urls(), private_key=rsa_pem, key_id=KEY_ID
                )
                assert answer.accepted == HOSTS
                await remote.wait_for((number + 1) * HOSTS)
            # one that stops leaves its share to the other at once, whatever its lease says; one that comes
            # gets its own
            assert await asyncio.to_thread(workers.pop(0).stop) == 0
            await divided(workers)
            workers.append(team.worker())
            await divided(workers)
    strangers = sum(min(counts.values()) for counts in remote.callers.values() if len(counts) > 1)
    assert remote.requests == 4 * HOSTS
    assert sum(remote.handshakes.values()) <= 1.2 * HOSTS
    assert strangers <= 0.1 * remote.requests


async def test_what_a_killed_worker_would_have_sent_another_sends_before_its_lease_ends(
    tmp_path: Path, valkey: ValkeyServer, namespace: str, rsa_pem: str
) -> None:
    with made_fleet(tmp_path, valkey, namespace, FEDSVC_LEASE="60") as team:
        server = team.server()
        workers = [team.worker(FEDSVC_USER_AGENT=name) for name in ("one", "two")]
        await asyncio.to_thread(server.ready)
        async with hosts() as remote, AsyncFedsvcClient(server.grpc) as client:
            await divided(workers)
            workers[0].kill()
            begun = time.monotonic()
            await client.fan_out(activity(0), remote.urls(), private_key=rsa_pem, key_id=KEY_ID)
            await client.fan_out(
                activity(1), remote.urls(), private_key=rsa_pem, key_id=KEY_ID, priority="urgent"
            )
            await remote.wait_for(2 * HOSTS)
            assert time.monotonic() - begun < 30, "long before the lease ends"
    assert {name for counts in remote.callers.values() for name in counts} == {"two"}


async def test_a_worker_that_stops_keeps_what_takes_longer_than_its_lease(
    tmp_path: Path, valkey: ValkeyServer, namespace: str, rsa_pem: str
) -> None:
    requests, answers = asyncio.Semaphore(0), asyncio.Event()
    came = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        await reader.readuntil(b"\r\n\r\n")
        came += 1
        requests.release()
        await answers.wait()
        writer.write(ANSWER)
        writer.close()

    link = Link(valkey.url)
    inboxes = await asyncio.start_server(serve, "127.0.0.1", 0)
    inbox = f"http://127.0.0.1:{inboxes.sockets[0].getsockname()[1]}/inbox"
    leases = Keys(namespace).partition(partition_of("127.0.0.1", PARTITIONS)).consumers
    with made_fleet(tmp_path, valkey, namespace, FEDSVC_LEASE=str(LEASE_S)) as team:
        server, stopping = team.server(), team.worker()
        await asyncio.to_thread(server.ready)
        async with AsyncFedsvcClient(server.grpc) as client, asyncio.timeout(90):
            sent = await client.queue_activity(activity(0), inbox, private_key=rsa_pem, key_id=KEY_ID)
            await requests.acquire()
            (name,) = await link.call("ZRANGE", leases, 0, -1)
            await divided([stopping, team.worker()])
            stopping.process.send_signal(signal.SIGTERM)
            ends = (await link.now_ms()) + 3 * LEASE_S * 1000
            while came == 1 and float(await link.call("ZSCORE", leases, name) or 0) < ends:
                await asyncio.sleep(0.05)
            answers.set()
            assert await asyncio.to_thread(stopping.stop) == 0
            while (await client.get_delivery(sent.delivery_id)).state != "DELIVERED":
                await asyncio.sleep(0.05)
    inboxes.close()
    await link.close()
    assert came == 1, "nobody else has sent it"
