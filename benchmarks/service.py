"""The service as its users run it: Valkey, a server, workers, each a process of its own, with all features at
their defaults (circuit, lanes, rate limits, retries, archive, metrics, logs)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Self

import redis
from fedsvc_client import FedsvcClient, QueueStats

from benchmarks.accounting import cpu_seconds
from benchmarks.load import CONCURRENCY, activity, key_id, pem
from benchmarks.processes import PATIENCE, Late, process
from fedsvc.domain.keys import KeyCipher
from fedsvc.embedded import EmbeddedServer


class Database:
    """Valkey or Redis on TCP, as the service meets it in production and the peers' own guides assume."""

    def __init__(self, directory: Path, binary: Path | None = None) -> None:
        self._server = EmbeddedServer(directory, binary)

    def __enter__(self) -> Self:
        asyncio.run(self._server.start())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        with redis.Redis.from_url(self._server.url) as client:
            client.config_set("bind", "127.0.0.1")
            client.config_set("port", self.port)
            told = client.info("server")
        name = told.get("server_name", "redis").capitalize()
        self.version = f"{name} {told.get('valkey_version') or told['redis_version']}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run(self._server.stop())

    def url(self, number: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{number}"

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._server.pid)


class Service:
    """Use it as a context. `settings` are environment variables."""

    def __init__(self, directory: Path, database: Database, **settings: str) -> None:
        self.directory = directory
        self.database = database
        self._stack = ExitStack()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FEDSVC_")},
            "REDIS_URL": database.url(),
            "DATABASE_URL": f"sqlite:///{directory / 'archive.db'}",
            "FEDSVC_KEY_ENCRYPTION_KEYS": KeyCipher.generate(),
            "FEDSVC_ALLOW_HTTP": "true",
            "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
            "FEDSVC_CONCURRENCY": str(CONCURRENCY),
            "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
            **settings,
        }

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # what it says goes to a file, since in production something reads it too
            self._log = stack.enter_context((self.directory / "log").open("wb"))
            subprocess.run(
                [sys.executable, "-m", "fedsvc", "migrate"],
                env=self.environment, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            self.server_pid, self.target = stack.enter_context(self._server())
            self.client = stack.enter_context(FedsvcClient(self.target, timeout=60.0))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def _run(
        self, *command: str, within: Sequence[str] = (), **environment: str
    ) -> Iterator[tuple[int, IO[str]]]:
        """Runs `fedsvc COMMAND`; its pid, and what it tells of itself, in lines of JSON. A process to whose
        status nobody listens any more stops, so that it ends with us too."""
        mine, theirs = os.pipe()
        whole = [*within, sys.executable, "-m", "fedsvc", *command, "--status-fd", str(theirs)]
        with (
            os.fdopen(mine) as lines,
            process(whole, {**self.environment, **environment}, self._log, pass_fds=(theirs,)) as started,
        ):
            os.close(theirs)
            yield started.pid, lines

    @contextmanager
    def _server(self) -> Iterator[tuple[int, str]]:
        """When it is ready: its pid, and where it speaks gRPC."""
        with self._run("server", "--listen", "127.0.0.1:0") as (pid, lines):
            for line in lines:
                told = json.loads(line)
                if told["ready"]:
                    yield pid, told["grpc"]
                    return
            raise Late(f"the server ended: {(self.directory / 'log').read_text()[-2000:]}")

    @contextmanager
    def worker(self, processes: int = 1, within: Sequence[str] = (), **environment: str) -> Iterator[int]:
        """`fedsvc worker`; gives its pid as soon as it has been started, not when it is ready. `within`: what
        runs the command that follows it, in the same process."""
        command = ("worker", "--processes", str(processes))
        with self._run(*command, within=within, **environment) as (pid, _):
            yield pid  # what it tells, when the pipe is full, is dropped

    def fan_out(self, number: int, inboxes: list[str], algorithm: str = "rsa") -> int:
        """Deliveries accepted."""
        answer = self.client.fan_out(
            activity(number), inboxes, private_key=pem(algorithm), key_id=key_id(algorithm)
        )
        return answer.accepted

    def wait(self, until: Callable[[QueueStats], bool], patience: float = PATIENCE) -> QueueStats:
        """Raises Late."""
        end = time.monotonic() + patience
        while not until(stats := self.client.get_queue_stats()):
            if time.monotonic() > end:
                raise Late(f"not in time: {stats}")
            time.sleep(0.05)  # often enough, and costs Redis little
        return stats


def server_version(binary: Path | None = None) -> str:
    """Name and version of the server that `Database` starts."""
    with (
        tempfile.TemporaryDirectory(prefix="fedsvc-bench-") as directory,
        Database(Path(directory), binary) as it,
    ):
        return it.version
