"""The demo: starts everything, fans out, watches, and checks every count at the end."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fedsvc_client import Delivery, DeliveryState, FedsvcClient
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedsvc.config_reading import INHERITED
from fedsvc.demo.activities import AUTHOR, COMMUNITY, activities

INBOXES: Final = 200
#: name (an address) to manner; the one that refuses has nobody listening
TROUBLE: Final = {"flaky": 1, "busy": 1, "hangs": 1, "refuses": 1}
PROCESSES: Final = 2
#: seconds after which the demo gives up
PATIENCE: Final = 150.0
#: the retry schedule is shortened by the setting that everybody has; what goes to a host that is down waits
#: for it and uses up no retries, so it is given up when its time is over. An inbox has seconds to answer: on
#: a busy machine one that is only late would be sent to twice, and the counts would not be as they must be
SETTINGS: Final = {
    "MAX_RETRY_DURATION": "20",
    "FEDSVC_ALLOW_HTTP": "true",
    "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
    "FEDSVC_RETRY_SCALE": "0.0005",
    "FEDSVC_DELIVERY_TIMEOUT": "5",
    "FEDSVC_LOG_LEVEL": "error",
}


@dataclass
class Result:
    """What the demo found. `problems` is empty if every count is as it must be."""

    accepted: int = 0
    delivered: int = 0
    retried: int = 0
    dead: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    per_second: float = 0.0
    verified: int = 0
    problems: list[str] = field(default_factory=list)


def run(as_json: bool) -> int:
    """Returns the exit code: 0 only if every count is as it must be."""
    console = Console(stderr=as_json)
    try:
        import apsig  # noqa: F401 - verifies the signatures in the inboxes
    except ImportError:
        raise click.ClickException("the demo needs the package apsig: pip install fedsvc[demo]") from None
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsvc-demo-")))
        result = _Demo(directory, console, stack).run()
    if as_json:
        click.echo(json.dumps(vars(result)))
    else:
        console.print(_table(result))
    for problem in result.problems:
        console.print(f"[red]not as it must be:[/] {problem}")
    return 1 if result.problems else 0


class _Demo:
    def __init__(self, directory: Path, console: Console, stack: ExitStack) -> None:
        self._directory = directory
        self._console = console
        self._stack = stack
        names = [f"127.77.{i // 250}.{i % 250 + 1}" for i in range(INBOXES)]
        manners = [manner for manner, number in TROUBLE.items() for _ in range(number)]
        manners += ["friendly"] * (INBOXES - len(manners))
        self._manners = dict(zip(names, manners, strict=True))
        self._keys: dict[str, str] = {}
        self._addresses: dict[str, str] = {}
        #: one address of each process of inboxes
        self._reporters: list[str] = []
        self._bodies = [json.dumps(a, ensure_ascii=False).encode() for a in activities()]

    def run(self) -> Result:
        self._console.print("Making keys, starting the inboxes and `fedsvc dev` ...")
        for actor in (AUTHOR, COMMUNITY):
            self._keys[f"{actor}#main-key"] = _pem(rsa.generate_private_key(65537, 2048))
        self._start_inboxes()
        client = self._stack.enter_context(FedsvcClient(self._start_dev(), timeout=30.0))
        result = Result()
        begun = time.monotonic()
        for body in self._bodies:
            fanned = client.fan_out(
                body, self._inboxes(), private_key=self._key(body), key_id=self._key_id(body)
            )
            result.accepted += fanned.accepted
            if fanned.rejected:
                result.problems.append(f"{len(fanned.rejected)} inboxes were rejected")
        self._console.print(
            f"Queued {result.accepted:,} deliveries of {len(self._bodies)} activities to {INBOXES} inboxes."
        )
        finished = self._watch(client, begun, result)
        self._measure(client, finished - begun, result)
        self._check(client, result)
        return result

    def _start_inboxes(self) -> None:
        public = {key_id: _public_pem(pem) for key_id, pem in self._keys.items()}
        listening = [name for name, manner in self._manners.items() if manner != "refuses"]
        for number in range(PROCESSES):
            plan = {"keys": public, "instances": {n: self._manners[n] for n in listening[number::PROCESSES]}}
            path = self._directory / f"inboxes-{number}.json"
            path.write_text(json.dumps(plan))
            process = self._spawn([sys.executable, "-m", "fedsvc.demo.inboxes", str(path)], {})
            listening_at = json.loads(_first_line(process))
            self._addresses |= listening_at
            self._reporters.append(next(iter(listening_at.values())))
        # A port that was free a moment ago: nobody listens there.
        port = next(iter(self._addresses.values())).rsplit(":", 1)[1]
        for name, manner in self._manners.items():
            if manner == "refuses":
                self._addresses[name] = f"{name}:{port}"

    def _start_dev(self) -> str:
        arguments = ["dev", "--data-dir", str(self._directory / "data")]
        arguments += ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--json"]
        process = self._spawn([sys.executable, "-m", "fedsvc", *arguments], SETTINGS)
        target: str = json.loads(_first_line(process))["grpc"]
        return target

    def _spawn(self, command: list[str], settings: dict[str, str]) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FEDSVC_") and k not in INHERITED}
        process = subprocess.Popen(
            command, env=kept | settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._stack.callback(_end, process)
        return process

    def _watch(self, client: FedsvcClient, begun: float, result: Result) -> float:
        """Follow the deliveries until none is pending. Returns when the last friendly inbox had its own."""
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        good = 0.0
        with Progress(*columns, console=self._console) as progress:
            lost = len(self._bodies) * (TROUBLE["hangs"] + TROUBLE["refuses"])
            delivered = progress.add_task("delivered", total=result.accepted - lost, note="")
            given_up = progress.add_task("given up", total=lost, note="")
            while True:
                stats = client.get_queue_stats()
                note = f"{stats.rates[0].delivered:.0f}/s over a minute, {stats.retry} wait for a retry"
                progress.update(delivered, completed=stats.delivered, note=note)
                progress.update(given_up, completed=stats.dead, note="")
                if not good and stats.delivered >= len(self._bodies) * (INBOXES - len(TROUBLE)):
                    good = time.monotonic()
                if not stats.pending:
                    return good or time.monotonic()
                if time.monotonic() - begun > PATIENCE:
                    result.problems.append(f"{stats.pending} deliveries are pending after {PATIENCE:.0f} s")
                    return good or time.monotonic()
                time.sleep(0.1)

    def _measure(self, client: FedsvcClient, seconds: float, result: Result) -> None:
        took: list[float] = []
        reasons: Counter[str] = Counter()
        for body in self._bodies:
            for delivery in client.iterate_deliveries(json.loads(body)["id"]):
                if delivery.state is DeliveryState.DELIVERED:
                    result.retried += delivery.attempts > 1
                    result.delivered += 1
                    took.append(_milliseconds(delivery))
                elif delivery.state is DeliveryState.DEAD:
                    result.dead += 1
                    reasons[self._manners[self._name(delivery)]] += 1
        took.sort()
        if took:
            result.p50_ms, result.p99_ms = took[len(took) // 2], took[int(len(took) * 0.99)]
        friendly = len(self._bodies) * (INBOXES - len(TROUBLE))
        result.per_second = friendly / seconds if seconds else 0.0
        expected = {"hangs": len(self._bodies), "refuses": len(self._bodies)}
        if dict(reasons) != expected:
            result.problems.append(f"dead letters by inbox are {dict(reasons)}, not {expected}")

    def _check(self, client: FedsvcClient, result: Result) -> None:
        """Hold what the service says against what the inboxes say."""
        total = len(self._bodies) * INBOXES
        dead = len(self._bodies) * (TROUBLE["hangs"] + TROUBLE["refuses"])
        retried = len(self._bodies) * (TROUBLE["flaky"] + TROUBLE["busy"])
        for name, is_, must_be in (
            ("accepted", result.accepted, total),
            ("delivered", result.delivered, total - dead),
            ("dead", result.dead, dead),
            ("retried", result.retried, retried),
        ):
            if is_ != must_be:
                result.problems.append(f"{name} is {is_}, not {must_be}")
        stats = client.get_queue_stats()
        if not stats.conserved or (stats.delivered, stats.dead) != (result.delivered, result.dead):
            result.problems.append(f"the queue's own sums differ: {stats}")
        wanted = {json.loads(body)["id"]: hashlib.sha256(body).hexdigest() for body in self._bodies}
        for name, told in self._reports().items():
            if told["bad_signatures"]:
                result.problems.append(f"{name} refused {told['bad_signatures']} signatures")
            if told["manner"] == "hangs":
                continue
            if told["digests"] != wanted:
                result.problems.append(f"{name} did not get every activity byte for byte")
            if any(times != 1 for times in told["received"].values()):
                result.problems.append(f"{name} got something twice")
            result.verified += len(told["received"])

    def _reports(self) -> dict[str, Any]:
        """Of every inbox that listens: what it received."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        reports: dict[str, Any] = {}
        for address in self._reporters:
            with direct.open(f"http://{address}/report", timeout=10) as answer:
                reports |= json.load(answer)
        return reports

    def _inboxes(self) -> list[str]:
        return [f"http://{address}/inbox" for address in self._addresses.values()]

    def _name(self, delivery: Delivery) -> str:
        address = delivery.inbox.removeprefix("http://").removesuffix("/inbox")
        return next(name for name, at in self._addresses.items() if at == address)

    def _key_id(self, body: bytes) -> str:
        return f"{json.loads(body)['actor']}#main-key"

    def _key(self, body: bytes) -> str:
        return self._keys[self._key_id(body)]


def _milliseconds(delivery: Delivery) -> float:
    assert delivery.accept_time is not None
    assert delivery.complete_time is not None
    return (delivery.complete_time - delivery.accept_time).total_seconds() * 1000


def _pem(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _public_pem(pem: str) -> str:
    from fedsvc.domain.keys import load_private_key

    return load_private_key(pem).public_pem


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise click.ClickException("a part of the demo did not start; see above")
    return line


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _table(result: Result) -> Table:
    table = Table("", "", title="What became of them", show_header=False)
    for name, value in (
        ("accepted", f"{result.accepted:,}"),
        ("delivered", f"{result.delivered:,}"),
        ("of these verified by the inboxes, byte for byte", f"{result.verified:,}"),
        ("delivered after a retry", f"{result.retried:,}"),
        ("dead letters (one inbox hangs, one refuses)", f"{result.dead:,}"),
        ("from enqueue to delivered, p50", f"{result.p50_ms:,.0f} ms"),
        ("from enqueue to delivered, p99", f"{result.p99_ms:,.0f} ms"),
        ("deliveries per second (to the friendly inboxes)", f"{result.per_second:,.0f}"),
    ):
        table.add_row(name, value)
    return table
