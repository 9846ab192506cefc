"""`fedsvc dev` as a newcomer uses it: one command, the client, real deliveries, no secret left behind."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from apsig.draft.verify import Verifier
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fedsvc_client import (
    AsyncFedsvcClient,
    DeliveryState,
    FedsvcClient,
    FedsvcError,
    InvalidRequest,
    NotFound,
    Priority,
    RequestIdReused,
    Unavailable,
)
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from servers.inbox import InboxServer
from servers.processes import Fedsvc, ended, fedsvc, run
from servers.valkey import ValkeyServer

from fedsvc.domain.keys import load_private_key

KEY_ID = "https://me.example/u/ada#main-key"
SETTINGS = {
    "FEDSVC_ALLOW_HTTP": "true",
    "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
    "FEDSVC_RETRY_SCALE": "0.001",
    "FEDSVC_LOG_LEVEL": "debug",
}
SAMPLES = Path(__file__).parents[3] / "shared" / "activities"
OWN_SAMPLES = Path(__file__).parents[1] / "data" / "activities"


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fedsvc]:
    directory = tmp_path_factory.mktemp("dev")
    listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    with Fedsvc(directory, "dev", "--data-dir", "data", *listen, settings=SETTINGS) as fedsvc:
        fedsvc.ready()
        yield fedsvc


@pytest.fixture
def target(dev: Fedsvc) -> str:
    return dev.ready()[0]


def activity(path: str, kind: str = "Like") -> dict[str, Any]:
    return {
        "id": f"https://me.example/activities/{path}",
        "type": kind,
        "actor": "https://me.example/u/ada",
        "object": "https://other.example/post/1",
    }


async def test_an_activity_arrives_signed_so_that_a_library_that_is_not_ours_verifies_it(
    target: str, rsa_pem: str
) -> None:
    async with InboxServer() as inbox, AsyncFedsvcClient(target) as client:
        queued = await client.queue_activity(activity("1"), inbox.url(), private_key=rsa_pem, key_id=KEY_ID)
        delivery = await ended(client, queued.delivery_id)
        assert (delivery.state, delivery.attempts, delivery.reason) == (DeliveryState.DELIVERED, 1, "OK")
        assert delivery.priority is Priority.URGENT
        (request,) = inbox.requests
        ((_, body),) = inbox.received
        public = load_private_key(rsa_pem).public_pem
        url = f"http://{request.host}{request.raw_path}"
        assert Verifier(public, "POST", url, dict(request.headers), body).verify(raise_on_fail=True)
        again = await client.queue_activity(activity("1"), inbox.url(), private_key=rsa_pem, key_id=KEY_ID)
        assert again.duplicate
        assert again.delivery_id == queued.delivery_id


def test_callers_may_ask_it_for_the_contract(target: str) -> None:
    stubs: Any = reflection_pb2_grpc
    messages: Any = reflection_pb2
    with grpc.insecure_channel(target) as channel:
        asked = iter([messages.ServerReflectionRequest(list_services="")])
        (answer,) = stubs.ServerReflectionStub(channel).ServerReflectionInfo(asked, timeout=20)
    assert "fedsvc.v1.DeliveryService" in {each.name for each in answer.list_services_response.service}


@pytest.mark.parametrize("folder", [SAMPLES, OWN_SAMPLES], ids=["servers", "own"])
async def test_every_activity_as_servers_send_it_is_accepted_and_arrives_byte_for_byte(
    target: str, rsa_pem: str, folder: Path
) -> None:
    samples = sorted(folder.glob("*.json"))
    if not samples and folder == SAMPLES:
        return  # they lie beside the checkout where there are any; our own are always here
    assert samples
    async with InboxServer() as inbox, AsyncFedsvcClient(target) as client:
        for number, sample in enumerate(samples):
            # two samples may have one id: the inbox tells them apart
            url = inbox.url(path=f"/{folder.name}/{number}/inbox")
            queued = await client.queue_activity(sample.read_bytes(), url, private_key=rsa_pem, key_id=KEY_ID)
            assert not queued.duplicate, sample.name
        await inbox.wait_for(len({sample.read_bytes() for sample in samples}))
        bodies = {body for _, body in inbox.received}
        assert bodies == {sample.read_bytes() for sample in samples}


async def test_a_fan_out_is_followed_recipient_by_recipient(target: str, rsa_pem: str) -> None:
    addresses = tuple(f"127.79.0.{i}" for i in range(1, 31))
    async with InboxServer(addresses=addresses) as inbox, AsyncFedsvcClient(target) as client:
        urls = [inbox.url(address) for address in addresses]
        fanned = await client.fan_out(
            activity("fan", "Announce"), [*urls, urls[0], "nonsense"], private_key=rsa_pem, key_id=KEY_ID
        )
        assert (fanned.accepted, fanned.duplicates) == (30, 1)
        assert isinstance(fanned.rejected, list)
        (rejected,) = fanned.rejected
        assert (rejected.index, rejected.inbox, rejected.error.field) == (31, "nonsense", "inboxes[31]")
        await inbox.wait_for(30)
        async with asyncio.timeout(20):
            while True:
                page = await client.list_deliveries(fanned.activity_id, page_size=7)
                if page.summary == {DeliveryState.DELIVERED: 30}:
                    break
                await asyncio.sleep(0.02)
        found = [d async for d in client.iterate_deliveries(fanned.activity_id)]
        assert sorted(d.inbox for d in found) == sorted(urls)
        assert len({d.delivery_id for d in found}) == 30


async def test_requests_are_named_so_that_they_can_be_repeated(target: str, rsa_pem: str) -> None:
    async with InboxServer() as inbox, AsyncFedsvcClient(target) as client:
        first = await client.queue_activity(
            activity("named"), inbox.url(), private_key=rsa_pem, key_id=KEY_ID, request_id="call-1"
        )
        second = await client.queue_activity(
            activity("named"), inbox.url(), private_key=rsa_pem, key_id=KEY_ID, request_id="call-1"
        )
        assert second.delivery_id == first.delivery_id
        assert not second.duplicate  # the first answer, again
        with pytest.raises(RequestIdReused):
            await client.queue_activity(
                activity("other"), inbox.url(), private_key=rsa_pem, key_id=KEY_ID, request_id="call-1"
            )


def test_the_synchronous_client_tells_what_is_wrong_by_field(target: str, rsa_pem: str) -> None:
    with FedsvcClient(target) as client:
        with pytest.raises(InvalidRequest) as refused:
            client.queue_activity(b"[]", "https://h.example/inbox", private_key=rsa_pem, key_id=KEY_ID)
        assert refused.value.violations[0].field == "activity"
        assert refused.value.reason == "INVALID_ACTIVITY"
        with pytest.raises(NotFound):
            client.get_delivery("1-1")
        with pytest.raises(InvalidRequest):
            client.get_delivery("nonsense")
        items = [
            {"activity": activity("batch"), "destination": "https://h.example/inbox"},
            {"activity": activity("batch"), "destination": "ftp://h.example/inbox"},
        ]
        good, bad = client.queue_activities(items, private_key=rsa_pem, key_id=KEY_ID)
        assert good.queued is not None
        assert bad.error is not None
        assert bad.error.field == "requests[1].inbox"


def test_a_client_whose_server_is_not_there_says_so_within_its_deadline() -> None:
    with FedsvcClient("127.0.0.1:1", timeout=0.5) as client, pytest.raises(Unavailable):
        client.get_queue_stats()


def test_the_client_works_in_a_process_that_forks_after_the_first_call(target: str, tmp_path: Path) -> None:
    """As gunicorn and Celery do. In a process of its own, since pytest's has threads."""
    program = f"""
import os
from fedsvc_client import FedsvcClient
client = FedsvcClient({target!r}, timeout=20)
before = client.get_queue_stats().accepted
children = []
for _ in range(3):
    pid = os.fork()
    if not pid:
        ok = client.get_queue_stats().accepted >= before
        os._exit(0 if ok else 1)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert codes == [0, 0, 0], codes
assert client.get_queue_stats().accepted >= before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


async def test_the_command_line_queues_and_shows(target: str, rsa_pem: str, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(rsa_pem)
    (tmp_path / "like.json").write_text(json.dumps(activity("cli")))
    async with InboxServer() as inbox:

        async def gone(host: str, body: bytes) -> Any:
            from aiohttp import web

            return web.Response(status=404, text="no such inbox")

        inbox.answer = gone
        arguments = ("--inbox", inbox.url(), "--key-id", KEY_ID, "--key-file", str(tmp_path / "key.pem"))
        queued = await asyncio.to_thread(
            fedsvc, "enqueue", str(tmp_path / "like.json"), *arguments, "--target", target, "--json"
        )
        assert queued.returncode == 0, queued.stderr
        delivery_id = json.loads(queued.stdout)["delivery_id"]
        async with AsyncFedsvcClient(target) as client:
            dead = await ended(client, delivery_id)
    assert (dead.state, dead.reason, dead.http_status) == (DeliveryState.DEAD, "NOT_FOUND", 404)
    listed = json.loads(fedsvc("dead", "list", "--json", FEDSVC_TARGET=target).stdout)
    assert delivery_id in [letter["delivery_id"] for letter in listed["dead_letters"]]
    assert delivery_id in fedsvc("dead", "list", FEDSVC_TARGET=target, COLUMNS="200").stdout
    shown = json.loads(fedsvc("dead", "show", delivery_id, "--json", "--target", target).stdout)
    assert (shown["response_snippet"], json.loads(shown["activity"])) == ("no such inbox", activity("cli"))
    assert "no such inbox" in fedsvc("dead", "show", delivery_id, "--target", target).stdout
    stats = json.loads(fedsvc("stats", "--json", "--target", target).stdout)
    assert stats["conserved"] is True
    assert "accepted" in fedsvc("stats", "--target", target).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("dead", "show", "nonsense"), 1, "fedsvc: delivery_id: not a delivery id"),
        (("dead", "show", "1-1"), 1, "fedsvc: there is no dead letter 1-1"),
        (("dead", "show"), 2, "Missing argument"),
        (
            ("stats", "--target", "127.0.0.1:1"),
            1,
            "fedsvc: no fedsvc server answers at 127.0.0.1:1 (--target): connection refused\n",
        ),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_errors_are_one_line_and_say_what_is_wrong(
    target: str, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = fedsvc(*arguments, FEDSVC_TARGET=target)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1


async def test_a_second_ctrl_c_does_not_wait_for_an_inbox_that_hangs_and_nothing_is_lost(
    tmp_path: Path, rsa_pem: str
) -> None:
    listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    arguments = ("dev", "--data-dir", "data", *listen)
    begun, never = asyncio.Event(), asyncio.Event()

    async def hang(host: str, body: bytes) -> Any:
        begun.set()
        await never.wait()

    async with InboxServer() as inbox:
        inbox.answer = hang
        with Fedsvc(tmp_path, *arguments, settings=SETTINGS) as dev:
            target, _ = await asyncio.to_thread(dev.ready)
            async with AsyncFedsvcClient(target) as client:
                queued = await client.queue_activity(
                    activity("hangs"), inbox.url(), private_key=rsa_pem, key_id=KEY_ID
                )
            async with asyncio.timeout(30):
                await begun.wait()
            below = await asyncio.to_thread(dev.children)
            dev.process.send_signal(signal.SIGINT)
            async with asyncio.timeout(10):
                while "up to 30 s; Ctrl-C again to leave it" not in dev.stderr:
                    await asyncio.sleep(0.02)
            assert dev.process.poll() is None
            assert await asyncio.to_thread(dev.stop, signal.SIGINT, 10.0) == 1
            async with asyncio.timeout(10):
                while any(Path(f"/proc/{pid}").exists() for pid in below):
                    await asyncio.sleep(0.02)
        with Fedsvc(tmp_path, *arguments, settings=SETTINGS) as dev:
            target, _ = await asyncio.to_thread(dev.ready)
            async with AsyncFedsvcClient(target) as client:
                assert not (await client.get_delivery(queued.delivery_id)).state.is_final
                assert (await client.get_queue_stats()).conserved
            never.set()


def test_what_files_say_in_place_of_variables_is_not_brought(
    tmp_path: Path, valkey: ValkeyServer, namespace: str
) -> None:
    urls = {"FEDSVC_REDIS_URL_FILE": valkey.url, "FEDSVC_DATABASE_URL_FILE": f"sqlite:///{tmp_path}/own.db"}
    settings = {"FEDSVC_NAMESPACE": namespace, "FEDSVC_PARTITIONS": "2"}
    for name, url in urls.items():
        (tmp_path / name).write_text(url)
        settings[name] = str(tmp_path / name)
    assert run(settings, "migrate").returncode == 0
    listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    with Fedsvc(tmp_path, "dev", "--data-dir", "data", *listen, settings=settings) as dev:
        dev.ready()
        with valkey.client() as redis:
            assert redis.get(f"{namespace}:partitions") == b"2"
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"lock", "key-encryption-keys"}


def test_health_readiness_and_metrics_are_served(dev: Fedsvc) -> None:
    base = f"http://{dev.ready()[1]}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path in ("/healthz", "/readyz"):
        with direct.open(base + path, timeout=10) as answer:
            assert answer.status == 200
    with direct.open(base + "/metrics", timeout=10) as answer:
        assert "fedsvc_accepted_total" in answer.read().decode()
    worker = next(
        json.loads(line)["http"]
        for line in dev.stderr.splitlines()
        if '"worker"' in line and '"listening"' in line
    )
    with direct.open(f"http://{worker}/readyz", timeout=10) as answer:
        assert answer.status == 200
    with direct.open(f"http://{worker}/metrics", timeout=10) as answer:
        assert "fedsvc_worker_partitions" in answer.read().decode()


def test_health_is_asked_for_on_the_command_line(dev: Fedsvc, free_port: int) -> None:
    at = dev.ready()[1]
    for arguments in ((), ("--live",)):
        done = fedsvc("health", *arguments, FEDSVC_HTTP_LISTEN=at)
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert done.stdout.strip() in ("ok", "ready")
    everywhere = fedsvc("health", "--json", FEDSVC_HTTP_LISTEN=f"0.0.0.0:{at.rpartition(':')[2]}")
    assert json.loads(everywhere.stdout) == {"status": "ready"}
    nobody = fedsvc("health", FEDSVC_HTTP_LISTEN=f"127.0.0.1:{free_port}")
    assert nobody.returncode == 1
    assert len(nobody.stderr.splitlines()) == 1


def secrets_of(pem: str) -> list[bytes]:
    """What would give a private key away, as text and as bytes."""
    key = load_pem_private_key(pem.encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    numbers = key.private_numbers()
    raw = [n.to_bytes((n.bit_length() + 7) // 8, "big") for n in (numbers.d, numbers.p, numbers.q)]
    lines = [line.encode() for line in pem.splitlines() if len(line) >= 32 and "-----" not in line]
    # the first line of a PKCS#8 key holds only its header and the public modulus
    return [*lines[6:], *raw, *(base64.b64encode(r)[:48] for r in raw)]


def test_no_private_key_is_in_clear_in_anything_that_was_written(
    dev: Fedsvc, target: str, rsa_pem: str
) -> None:
    """Runs last in this module: looks into all that the tests above made fedsvc write."""
    with FedsvcClient(target) as client:
        with pytest.raises(FedsvcError) as refused:
            client.queue_activity(
                activity("bad"),
                "https://h.example/inbox",
                private_key=rsa_pem.replace("A", "B"),
                key_id=KEY_ID,
            )
        client.queue_activity(activity("x"), "https://h.invalid/inbox", private_key=rsa_pem, key_id=KEY_ID)
    files = [path for path in dev.directory.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"archive.db", "stderr", "key-encryption-keys"} <= names
    assert any(".aof" in name for name in names)
    secrets = secrets_of(rsa_pem)
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret in content], path
    assert not [secret for secret in secrets if secret in str(refused.value).encode()]
