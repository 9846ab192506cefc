"""The peers as contenders, in the environment of `requirements/bench.lock`, with a database of their own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis

from benchmarks.load import activity, compact
from benchmarks.machine import ROOT
from benchmarks.processes import PATIENCE, Sink, key_file, process
from benchmarks.service import Service

PYTHON: Final = ROOT / "build/peers/bin/python"
PEERS: Final = ("dramatiq", "taskiq", "saq", "arq", "streaq", "celery")
#: of Redis; ours is 0
_DATABASE: Final = 1
#: seconds in which the last tasks are acknowledged, once their deliveries have arrived
_SETTLING: Final = 0.5


def available() -> bool:
    return PYTHON.exists()


class PeerContender:
    """`python -m benchmarks.peers.NAME_peer`."""

    repeats = True

    def __init__(self, name: str, service: Service, sink: Sink, deliveries: int) -> None:
        self.name = name
        self.deliveries = deliveries
        self.uncounted = deliveries // 10
        self._url = service.database.url(_DATABASE)
        self._log = service.directory / f"{name}.log"
        body = service.directory / "peers-body"
        body.write_bytes(compact(activity(0)))
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "BENCH_REDIS_URL": self._url,
            "BENCH_PORT": str(sink.ports[0]),
            "BENCH_DELIVERIES": str(deliveries),
            "BENCH_KEY": str(key_file(service.directory, "rsa")),
            "BENCH_BODY": str(body),
        }

    def _command(self, what: str) -> list[str]:
        return [str(PYTHON), "-m", f"benchmarks.peers.{self.name}_peer", what]

    def prepare(self) -> None:
        with redis.Redis.from_url(self._url) as client:
            client.flushdb()
        subprocess.run(
            self._command("enqueue"), env=self._environment, cwd=ROOT, check=True, timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    @contextmanager
    def start(self) -> Iterator[list[int]]:
        with (
            self._log.open("wb") as log,
            process(self._command("work"), self._environment, log, stdout=log) as started,
        ):
            yield [started.pid]

    def settled(self) -> None:
        time.sleep(_SETTLING)

    def check(self, head: str) -> None:
        if "signature:" not in head.lower():
            raise RuntimeError(f"{self.name}: not signed: {head}")


def versions() -> str:
    """Of the peers, as they are installed."""
    names = ", ".join(repr(name) for name in (*PEERS, "taskiq-redis"))
    script = (
        f"from importlib.metadata import version as v; print(', '.join(f'{{n}} {{v(n)}}' for n in ({names})))"
    )
    return subprocess.run([PYTHON, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
