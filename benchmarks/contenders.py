"""Who can take part in a race: the bare loop, and ours in several forms. Peers: `benchmarks/peers`."""

from __future__ import annotations

import base64
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.bare import inbox_urls
from benchmarks.load import HOSTS, activity, compact
from benchmarks.processes import Sink, key_file, process
from benchmarks.quota import limited
from benchmarks.service import Service
from benchmarks.unsigned.signature import NULL_SIGNATURE

#: of activities; no two contenders ever send the same
numbers = itertools.count(1)
_NULL = base64.b64encode(NULL_SIGNATURE).decode()
_UNSIGNED_PATH = str(Path(__file__).with_name("unsigned"))


class Bare:
    """`benchmarks/bare.py`."""

    repeats = False

    def __init__(
        self,
        service: Service,
        sink: Sink,
        deliveries: int,
        *,
        algorithm: str = "rsa",
        signs: bool = True,
        hosts: int = HOSTS,
        ca: str = "",
    ) -> None:
        """`ca`: file of the authority, where the inboxes speak TLS."""
        self.name = (
            "bare" + ("" if algorithm == "rsa" else f", {algorithm}") + ("" if signs else ", unsigned")
        )
        self.deliveries = deliveries
        self.uncounted = deliveries // 10
        self._environment = service.environment
        self._body = service.directory / "body"
        self._command = [
            *(sys.executable, "-m", "benchmarks.bare"),
            *("--ports", json.dumps(sink.ports), "--deliveries", str(deliveries)),
            *("--key", str(key_file(service.directory, algorithm)), "--body", str(self._body)),
            *("--hosts", str(hosts), "--ca", ca),
            *(() if signs else ("--unsigned",)),
        ]
        self._signs = signs

    def prepare(self) -> None:
        self._body.write_bytes(compact(activity(0)))

    @contextmanager
    def start(self) -> Iterator[list[int]]:
        with process(self._command, self._environment) as started:
            yield [started.pid]

    def settled(self) -> None:
        """It settles nothing."""

    def check(self, head: str) -> None:
        _check(head, self._signs)


class Ours:
    """`fedsvc worker`, with a backlog that came by FanOutActivity."""

    repeats = False

    def __init__(
        self,
        service: Service,
        sink: Sink,
        deliveries: int,
        *,
        algorithm: str = "rsa",
        processes: int = 1,
        signs: bool = True,
        hosts: int = HOSTS,
        tls: bool = False,
    ) -> None:
        self.name = "fedsvc" + (f", {processes} processes" if processes > 1 else "")
        self.name += ("" if algorithm == "rsa" else f", {algorithm}") + ("" if signs else ", unsigned")
        self.name += "" if hosts == HOSTS or tls else f", {hosts} hosts"
        self.deliveries = deliveries
        self.uncounted = deliveries // 10
        self._service = service
        self._inboxes = inbox_urls(sink.ports, hosts, tls=tls)
        if deliveries % hosts:
            raise ValueError(f"{deliveries} deliveries cannot go to each of {hosts} hosts equally often")
        self._algorithm = algorithm
        self._processes = processes
        self._signs = signs

    def prepare(self) -> None:
        accepted = self._service.client.get_queue_stats().accepted
        for _ in range(self.deliveries // len(self._inboxes)):
            self._service.fan_out(next(numbers), self._inboxes, self._algorithm)
        self._delivered = accepted + self.deliveries

    @contextmanager
    def start(self) -> Iterator[list[int]]:
        environment = {} if self._signs else {"PYTHONPATH": _UNSIGNED_PATH}
        with self._service.worker(self._processes, **environment) as pid:
            yield [pid]

    def settled(self) -> None:
        stats = self._service.wait(lambda stats: stats.pending == 0)
        if stats.delivered != self._delivered:
            raise RuntimeError(f"not all were delivered: {stats}")

    def check(self, head: str) -> None:
        _check(head, self._signs)


class Pods(Ours):
    """Some `fedsvc worker` of one process, each held to `share` of a core, as pods with a CPU limit are."""

    def __init__(self, service: Service, sink: Sink, deliveries: int, *, pods: int, share: float) -> None:
        super().__init__(service, sink, deliveries)
        self.name = f"{pods} held to {share:g} of a core" + (" each" if pods > 1 else "")
        self._pods = pods
        self._share = share

    @contextmanager
    def start(self) -> Iterator[list[int]]:
        with ExitStack() as stack:
            groups = [stack.enter_context(limited(self._share)) for _ in range(self._pods)]
            yield [stack.enter_context(self._service.worker(within=group)) for group in groups]


def _check(head: str, signs: bool) -> None:
    if signs == (_NULL in head):
        raise RuntimeError(f"signed, or not signed, as it should not be: {head}")
