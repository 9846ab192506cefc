"""The service as a proof needs it: Valkey, a server, workers and remotes, each a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Self

import grpc
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fedsvc_client import FedsvcClient, QueueStats

from benchmarks.proofs.remotes import address
from fedsvc.embedded import EmbeddedServer
from fedsvc.v1 import operations_service_pb2
from fedsvc.v1.operations_service_pb2_grpc import OperationsServiceStub

KEY_ID = "https://me.example/u/ada#main-key"
PATIENCE = 300.0


def activity(id: str, kind: str = "Announce", size: int = 2000) -> dict[str, Any]:
    start = {"id": id, "@context": "https://www.w3.org/ns/activitystreams", "type": kind}
    page = {"id": f"{id}/page", "type": "Page", "content": ""}
    rest = {"actor": "https://me.example/u/ada", "object": page}
    missing = size - len(json.dumps({**start, **rest}, separators=(",", ":")))
    return {**start, **rest, "object": {**page, "content": "x" * max(0, missing)}}


class Site:
    #: the program of the Redis or Valkey server; None for the one that tests use
    binary: ClassVar[Path | None] = None

    def __init__(self, *, hanging: int = 0, refuse_percent: int = 0, seed: int = 1, **settings: str) -> None:
        self._stack = ExitStack()
        self._remotes_arguments = [str(hanging), str(refuse_percent), str(seed)]
        self._settings = settings
        key = ed25519.Ed25519PrivateKey.generate()
        self.pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.workers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsvc-proof-")))
        self.valkey = EmbeddedServer(directory, self.binary)
        asyncio.run(self.valkey.start())
        self._stack.callback(lambda: asyncio.run(self.valkey.stop()))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FEDSVC_")},
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": f"sqlite:///{directory / 'archive.db'}",
            "FEDSVC_KEY_ENCRYPTION_KEYS": secrets.token_hex(32),
            "FEDSVC_ALLOW_HTTP": "true",
            "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
            "FEDSVC_LOG_LEVEL": "error",
            "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
            **self._settings,
        }
        subprocess.run(
            [sys.executable, "-m", "fedsvc", "migrate"], env=self.environment, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self._remotes = self._spawn(
            [sys.executable, "-m", "benchmarks.proofs.remotes", *self._remotes_arguments],
            stdin=subprocess.PIPE,
        )
        assert self._remotes.stdout is not None
        self.port = int(self._remotes.stdout.readline())
        self.server, self.target = self._spawn_server()
        self.client = self._stack.enter_context(FedsvcClient(self.target, timeout=60.0))
        channel = self._stack.enter_context(grpc.insecure_channel(self.target))
        self._operations = OperationsServiceStub(channel)

    def _spawn(self, command: list[str], **how: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True, **how)
        self._stack.callback(_end, process)
        return process

    def _spawn_server(self) -> tuple[subprocess.Popen[str], str]:
        mine, theirs = os.pipe()
        command = [sys.executable, "-m", "fedsvc", "server", "--listen", "127.0.0.1:0"]
        process = self._spawn([*command, "--status-fd", str(theirs)], pass_fds=(theirs,))
        os.close(theirs)
        lines = self._stack.enter_context(os.fdopen(mine))
        for line in lines:
            status = json.loads(line)
            if status["ready"]:
                return process, status["grpc"]
        raise RuntimeError("the server ended")

    def start_worker(self) -> subprocess.Popen[str]:
        """One more worker process."""
        process = self._spawn([sys.executable, "-m", "fedsvc", "worker-process"])
        self.workers.append(process)
        return process

    def stop_workers(self) -> None:
        for process in self.workers:
            _end(process)
        self.workers.clear()

    def inbox(self, number: int, path: str = "/inbox") -> str:
        return f"http://{address(number)}:{self.port}{path}"

    def queue(self, id: str, inbox: str, **options: Any) -> None:
        kind = options.pop("kind", "Announce")
        self.client.queue_activity(activity(id, kind), inbox, private_key=self.pem, key_id=KEY_ID, **options)

    def fan_out(self, id: str, inboxes: list[str], **options: Any) -> int:
        kind, key_id = options.pop("kind", "Announce"), options.pop("key_id", KEY_ID)
        answer = self.client.fan_out(
            activity(id, kind), inboxes, private_key=self.pem, key_id=key_id, **options
        )
        return answer.accepted

    def arrived(self) -> list[tuple[str, str, float]]:
        """What was taken since the last call: host, activity id, when (milliseconds since the epoch)."""
        assert self._remotes.stdin is not None
        assert self._remotes.stdout is not None
        self._remotes.stdin.write("\n")
        self._remotes.stdin.flush()
        return [(host, id, at) for host, id, at in json.loads(self._remotes.stdout.readline())]

    def pause(self, host: str) -> None:
        self._operations.PauseHost(operations_service_pb2.PauseHostRequest(host=host), timeout=10.0)

    def resume(self, host: str) -> None:
        self._operations.ResumeHost(operations_service_pb2.ResumeHostRequest(host=host), timeout=10.0)

    def wait_delivered(self, deliveries: int) -> QueueStats:
        return self.wait(lambda stats: stats.delivered >= deliveries)

    def wait(self, until: Callable[[QueueStats], bool], patience: float = PATIENCE) -> QueueStats:
        end = time.monotonic() + patience
        while True:
            stats = self.client.get_queue_stats()
            if until(stats):
                return stats
            if time.monotonic() > end:
                raise RuntimeError(f"not in time: {stats}")
            time.sleep(0.1)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
    process.wait(60)
