"""The queue on a cluster, under Sentinel, with accounts, with TLS, and as durable as it was asked to be."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from servers.certificates import authority
from servers.queue import Queue, open_queue
from servers.topologies import cluster, sentinels
from servers.unused_ports import unused_port
from servers.valkey import ValkeyServer, valkey_server

from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryState
from fedsvc.domain.relations import Relation
from fedsvc.errors import ConfigurationError, QueueUnavailable
from fedsvc.queue import durability
from fedsvc.queue.bell import Bell, Rung
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.durability import Durability, check_durability
from fedsvc.queue.link import Link
from fedsvc.queue.server_info import record_partitions, server_info

PATIENCE = 30.0


async def patiently(work: Callable[[], Awaitable[object]]) -> object:
    """Repeat what is safe to repeat until the queue is back."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while True:
        try:
            return await work()
        except QueueUnavailable:
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.1)


async def whole_life(queue: Queue) -> None:
    """Every script, on every partition."""
    await record_partitions(queue.link, queue.keys, queue.settings)
    await queue.fan_out("1", range(20))
    queued = await queue.enqueue("2", relation=Relation("key"))
    await queue.enqueue("3", relation=Relation("key"))
    assert (await queue.conserved()).pending == 22
    taken = await queue.admit_everywhere()
    assert len(taken) == 21
    for number, admitted in enumerate(taken):
        await (queue.fail(admitted, wait_ms=0) if number % 4 == 0 else queue.deliver(admitted))
    await queue.promote()
    await queue.reclaim("b")
    for admitted in await queue.admit_everywhere():
        await queue.deliver(admitted)
    canceller = Canceller(queue.link, queue.keys, queue.settings)
    await canceller.cancel([queued.id])
    await canceller.cancel_host("h1.example")
    await queue.hosts.pause("h2.example")
    await queue.hosts.resume("h2.example")
    for partition in range(4):
        _, last, count = await queue.outcomes.read(partition, 0, 100)
        if count:
            await queue.outcomes.commit(partition, 0, last, count)
        await queue.outcomes.trim(partition, 100, early=True)
        await queue.outcomes.bury(partition, 100)
        await queue.hosts.audit(partition)
        assert await queue.outcomes.lead(partition, "a")
        await queue.consumer("a").leave(partition)
    info = await server_info(queue.link)
    assert info.used_memory > 0
    await queue.conserved()


async def heard(queue: Queue) -> None:
    """The bell of a partition is heard, whichever server it belongs to."""
    bells = Bell(queue.link, queue.keys).listen()

    async def urgent() -> Rung:
        # In a cluster, what rang before may come only now.
        return await anext(told async for told in bells if isinstance(told, Rung) and told.urgent)

    waiting = asyncio.ensure_future(urgent())
    number = 0
    async with asyncio.timeout(PATIENCE):
        while not waiting.done():
            number += 1
            await queue.enqueue(f"bell{number}", inbox=number % 8)
            await asyncio.sleep(0.01)
    assert (await waiting).partition in range(4)
    await bells.aclose()


async def test_a_cluster_does_all_and_survives_the_death_of_a_master(tmp_path: Path, namespace: str) -> None:
    with cluster(tmp_path) as made:
        async with open_queue(made.url, namespace, FEDSVC_DURABILITY="replicated") as queue:
            await check_durability(queue.link, queue.settings)
            await whole_life(queue)
            await heard(queue)
            before = await queue.fan_out("before", range(40))
            await asyncio.to_thread(made.kill_master)
            await patiently(queue.conserved)
            total, _ = await queue.reader.count_activity("https://me.example/before")
            assert total == before.accepted, "what was acknowledged is there"
            # the partitions of the dead master have no replica left
            queue.link.durability = type(queue.link.durability)()
            await patiently(lambda: queue.fan_out("after", range(40), request_id="after"))
            assert (await queue.conserved()).pending >= 80


async def test_a_master_of_a_cluster_that_hangs_keeps_nobody_waiting_for_the_others(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        link = Link(made.url, timeout=1.0)
        try:
            near, far = "fedsvc:{p2}:x", "fedsvc:{p3}:x"  # of the second master, and of the first
            await asyncio.gather(link.call("SET", near, 1), link.call("SET", far, 1))
            made.nodes[0].process.send_signal(signal.SIGSTOP)
            with pytest.raises(QueueUnavailable, match="TimeoutError"):
                await link.call("GET", far)
            answers = await asyncio.gather(
                link.call("GET", near), link.call("GET", far), return_exceptions=True
            )
            assert answers[0] == b"1"
            # its replica takes over, while it hangs
            assert await patiently(lambda: link.call("SET", far, 2)) == b"OK"
        finally:
            made.nodes[0].process.send_signal(signal.SIGCONT)
            await link.close()


async def test_sentinel_leads_to_the_new_master(tmp_path: Path, namespace: str) -> None:
    with sentinels(tmp_path) as made:
        async with open_queue(made.url, namespace, FEDSVC_DURABILITY="replicated") as queue:
            await check_durability(queue.link, queue.settings)
            await whole_life(queue)
            await heard(queue)
            before = await queue.fan_out("before", range(40))
            await asyncio.to_thread(made.kill_master)
            await patiently(queue.conserved)
            total, _ = await queue.reader.count_activity("https://me.example/before")
            assert total == before.accepted
            # nobody will confirm it, however long it is waited for
            queue.link.durability = Durability(("WAIT", 1, 100), 1)
            with pytest.raises(QueueUnavailable, match="not safe in time"):
                await queue.fan_out("unsafe", range(4))


@pytest.fixture
async def durable(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    with valkey_server(tmp_path, appendonly=True, extra=("--appendfsync", "everysec")) as server:
        yield server


def settings(**environment: str) -> Settings:
    return Settings.from_environment(environment)


async def test_fsync_waits_for_the_disk(durable: ValkeyServer, namespace: str) -> None:
    async with open_queue(durable.url, namespace) as queue:
        await check_durability(queue.link, settings(FEDSVC_DURABILITY="fsync"))
        queued = await queue.enqueue("1")
        durable.kill()
        durable.restart()
        assert (await queue.get(queued.id)).state is DeliveryState.READY


async def test_fsync_needs_a_file(valkey: ValkeyServer) -> None:
    link = Link(valkey.url)
    try:
        with pytest.raises(ConfigurationError, match=r"FEDSVC_DURABILITY.*appendonly"):
            await check_durability(link, settings(FEDSVC_DURABILITY="fsync"))
    finally:
        await link.close()


async def test_without_replicas_nothing_is_replicated(valkey: ValkeyServer, namespace: str) -> None:
    async with open_queue(valkey.url, namespace) as queue:
        await check_durability(
            queue.link, settings(FEDSVC_DURABILITY="replicated", FEDSVC_REDIS_TIMEOUT="0.5")
        )
        with pytest.raises(QueueUnavailable, match="not safe in time"):
            await queue.enqueue("1")
        assert (await queue.stats.read()).pending == 1, "stats wait for nothing"


#: as docs/operations.md tells
ACL = (
    "~fedsvc:* &fedsvc:* -@all +@read +@write +@fast +@slow +@scripting +@stream +@pubsub +@connection "
    "+memory|purge +script|load -@dangerous +info +keys +config|get"
)


def test_the_rights_are_those_that_the_documentation_tells() -> None:
    page = Path(__file__).parents[2] / "docs/operations.md"
    assert f"ACL SETUSER sender on >PASSWORD {ACL}\n" in page.read_text()
    assert "waitaof" not in ACL, "Redis 7.0 knows no such command, and takes nothing of such a line"


async def test_an_account_with_only_these_rights_is_enough(tmp_path: Path) -> None:
    with valkey_server(tmp_path, port=unused_port()) as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "fedsvc", "on", ">s3cr:t@/", *ACL.split())
        url = server.url.replace("redis://", "redis://fedsvc:s3cr%3At%40%2F@")
        async with open_queue(url, "fedsvc") as queue:
            await whole_life(queue)
            await heard(queue)
        async with open_queue(url, "another") as queue:
            with pytest.raises(QueueUnavailable):
                await queue.enqueue("1")


@pytest.mark.parametrize("newer", [True, False])
async def test_these_rights_are_enough_to_ask_how_safe_the_disk_is(
    newer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not newer:  # than Redis 7.2, which has WAITAOF
        monkeypatch.setattr(durability, "_has_waitaof", AsyncMock(return_value=False))
    always = ("--appendfsync", "always")
    with valkey_server(tmp_path, appendonly=True, port=unused_port(), extra=always) as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "fedsvc", "on", ">secret", *ACL.split())
        url = server.url.replace("redis://", "redis://fedsvc:secret@")
        async with open_queue(url, "fedsvc") as queue:
            await check_durability(queue.link, settings(FEDSVC_DURABILITY="fsync"))
            await queue.enqueue("1")


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://127.0.0.1:26379", "redis+sentinel://secret@/x", "redis+cluster://127.0.0.1",
        "redis+cluster://:secret@127.0.0.1:1/3", "redis+cluster://127.0.0.1:99999",
        "rediss+cluster://:secret@127.0.0.1:1?nonsense=1", "http://:secret@127.0.0.1", "secret",
    ],
)  # fmt: skip
def test_a_bad_url_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL") as caught:
        Link(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["rediss", "rediss+sentinel", "rediss+cluster"])
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("ssl_certfile={cert}&ssl_keyfile={locked}", "{locked} is encrypted, and no password is given"),
        (
            "ssl_certfile={cert}&ssl_keyfile={other}",
            "{cert} is no certificate in PEM with its key in {other}",
        ),
        ("ssl_certfile={ca}", "{ca} is no certificate in PEM with its key"),
        ("ssl_certfile=/nonexistent", "cannot be read: No such file or directory"),
        ("ssl_keyfile={other}", "ssl_keyfile needs ssl_certfile beside it"),
        ("ssl_ca_certs=/nonexistent", "/nonexistent cannot be read: No such file or directory"),
        ("ssl_ca_certs={locked}", "{locked} holds no certificates in PEM"),
    ],
)
def test_files_of_tls_that_cannot_be_used_are_told_at_once_and_nobody_is_asked_for_a_password(
    scheme: str, options: str, problem: str, tmp_path: Path
) -> None:
    issuer = authority()
    cert = issuer.certify("client")
    other = tmp_path / "other.pem"
    other.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    )
    locked = tmp_path / "locked.pem"
    key = load_pem_private_key(cert.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    names = {"cert": cert, "other": other, "locked": locked, "ca": issuer.file}
    path = "/service" if "sentinel" in scheme else ""
    with pytest.raises(ConfigurationError) as caught:
        Link(f"{scheme}://127.0.0.1:1{path}?{options.format(**names)}")
    assert str(caught.value) == f"REDIS_URL: {problem.format(**names)}"


def tls_server() -> str:
    """A server with TLS, which the wheel's has not; Debian's redis-server has."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path and "libssl" in subprocess.run(["ldd", path], capture_output=True, text=True).stdout:
            return path
    pytest.skip("no server with TLS on PATH (apt-get install redis-server)")


async def test_tls_is_verified(tmp_path: Path, namespace: str) -> None:
    binary = tls_server()
    issuer = authority()
    certificate = issuer.certify("127.0.0.1")
    port = unused_port()
    process = subprocess.Popen(
        [
            binary, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "",
            "--tls-cert-file", str(certificate), "--tls-key-file", str(certificate),
            "--tls-auth-clients", "no", "--dir", str(tmp_path), "--logfile", str(tmp_path / "log"),
        ],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        trusted = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={issuer.file}"
        async with open_queue(trusted, namespace) as queue:
            await patiently(queue.conserved)
            await whole_life(queue)
        async with open_queue(f"rediss://127.0.0.1:{port}/0", namespace) as queue:
            with pytest.raises(QueueUnavailable):
                await queue.enqueue("1")
    finally:
        process.kill()
        process.wait()
