"""`make bench`: the worker beside a bare loop, a fan-out, and what a pending delivery takes up.

Every comparison is made in one run, interleaved, over ROUNDS rounds; medians with their spread are printed,
and written as JSON to build/bench.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fedsvc_client import FedsvcClient

from benchmarks.sink import address
from fedsvc.domain.keys import KeyCipher
from fedsvc.embedded import EmbeddedServer

ROUNDS = 3
HOSTS = 50
DELIVERIES = 10_000
CONCURRENCY = 128
INBOXES = 10_000
KEY_ID = "https://me.example/u/ada#main-key"
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 120.0


def cpu_seconds(pid: int) -> float:
    """Of a process, by the operating system's accounting."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def activity(number: int) -> dict[str, Any]:
    """About 2 KB."""
    return {
        "@context": "https://www.w3.org/ns/activitystreams",
        "id": f"https://me.example/activities/{number}",
        "type": "Announce",
        "actor": "https://me.example/u/ada",
        "object": {"id": "https://me.example/page", "type": "Page", "content": "x" * 1760},
    }


class Bench:
    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.stack = stack
        key = rsa.generate_private_key(65537, 2048)
        self.pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        (directory / "key.pem").write_text(self.pem)
        (directory / "body.json").write_bytes(json.dumps(activity(0)).encode())
        self.numbers = iter(range(1, 1_000_000))

    def start(self) -> None:
        self.valkey = EmbeddedServer(self.directory)
        asyncio.run(self.valkey.start())
        self.stack.callback(lambda: asyncio.run(self.valkey.stop()))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FEDSVC_")},
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": f"sqlite:///{self.directory / 'archive.db'}",
            "FEDSVC_KEY_ENCRYPTION_KEYS": KeyCipher.generate(),
            "FEDSVC_ALLOW_HTTP": "true",
            "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
            "FEDSVC_CONCURRENCY": str(CONCURRENCY),
            "FEDSVC_LOG_LEVEL": "warning",
            "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
        }
        subprocess.run([sys.executable, "-m", "fedsvc", "migrate"], env=self.environment, check=True)
        sink = self.spawn([sys.executable, "-m", "benchmarks.sink", str(HOSTS)], stdin=subprocess.PIPE)
        assert sink.stdout is not None
        self.port = int(sink.stdout.readline())
        server = [sys.executable, "-m", "fedsvc", "server", "--listen", "127.0.0.1:0"]
        self.server, target = self.spawn_child(server)
        self.client = self.stack.enter_context(FedsvcClient(target, timeout=60.0))

    def spawn(self, command: list[str], **how: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True, **how)
        self.stack.callback(_end, process)
        return process

    def spawn_child(self, command: list[str]) -> tuple[subprocess.Popen[str], str]:
        """A server; returns also where it speaks gRPC."""
        mine, theirs = os.pipe()
        process = self.spawn([*command, "--status-fd", str(theirs)], pass_fds=(theirs,))
        os.close(theirs)
        # open to the end: a child whose parent does not listen any more stops
        lines = self.stack.enter_context(os.fdopen(mine))
        for line in lines:
            status = json.loads(line)
            if status["ready"]:
                return process, status["grpc"]
        raise AssertionError("the server ended")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(30)


@contextmanager
def worker(bench: Bench) -> Iterator[int]:
    """One worker process; gives its pid."""
    command = [sys.executable, "-m", "fedsvc", "worker-process"]
    process = subprocess.Popen(command, env=bench.environment, text=True)
    try:
        yield process.pid
    finally:
        _end(process)


def wait_until_settled(client: FedsvcClient, delivered: int) -> None:
    end = time.monotonic() + PATIENCE
    while client.get_queue_stats().delivered < delivered:
        assert time.monotonic() < end, "not done in time"
        time.sleep(0.1)  # often enough, and costs Redis little


def bare(bench: Bench) -> dict[str, float]:
    arguments = [str(n) for n in (bench.port, HOSTS, DELIVERIES, CONCURRENCY)]
    files = [str(bench.directory / "key.pem"), str(bench.directory / "body.json")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bare", *arguments, *files],
        env=bench.environment, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    took = json.loads(done.stdout)
    return {"per_second": DELIVERIES / took["wall"], "cpu_us": took["cpu"] / DELIVERIES * 1e6}


def ours(bench: Bench) -> dict[str, float]:
    """A backlog is delivered by one worker process, as users run it: archive, metrics and logs on."""
    urls = [f"http://{address(n)}:{bench.port}/inbox" for n in range(HOSTS)]
    before = bench.client.get_queue_stats()
    for _ in range(DELIVERIES // HOSTS):
        bench.client.fan_out(activity(next(bench.numbers)), urls, private_key=bench.pem, key_id=KEY_ID)
    with worker(bench) as pid:
        warm = DELIVERIES // 10
        wait_until_settled(bench.client, before.delivered + warm)
        wall, cpu, redis = time.perf_counter(), cpu_seconds(pid), cpu_seconds(bench.valkey.pid)
        done = bench.client.get_queue_stats().delivered
        wait_until_settled(bench.client, before.delivered + DELIVERIES)
        count = before.delivered + DELIVERIES - done
        return {
            "per_second": count / (time.perf_counter() - wall),
            "cpu_us": (cpu_seconds(pid) - cpu) / count * 1e6,
            "redis_us": (cpu_seconds(bench.valkey.pid) - redis) / count * 1e6,
        }


def fan_out(bench: Bench) -> dict[str, float]:
    """One activity to 10,000 inboxes on as many hosts; nobody delivers it."""
    run = next(bench.numbers)
    urls = [f"https://host-{run}-{n:05}.example/inbox" for n in range(INBOXES)]
    memory = bench.client.get_queue_stats().redis_used_memory
    wall, cpu = time.perf_counter(), cpu_seconds(bench.server.pid)
    answer = bench.client.fan_out(activity(run), urls, private_key=bench.pem, key_id=KEY_ID)
    took = time.perf_counter() - wall
    assert answer.accepted == INBOXES
    used = bench.client.get_queue_stats().redis_used_memory - memory
    return {
        "per_second": INBOXES / took,
        "server_us": (cpu_seconds(bench.server.pid) - cpu) / INBOXES * 1e6,
        "bytes": used / INBOXES,
    }


def row(name: str, values: list[float], digits: int = 0) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{name:<58} {middle:>10,.{digits}f}   ({low:,.{digits}f} to {high:,.{digits}f})"


def main() -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsvc-bench-")))
        bench = Bench(directory, stack)
        bench.start()
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(ROUNDS):
            rounds.append({"bare": bare(bench), "ours": ours(bench)})
            print(f"round {number + 1} of {ROUNDS} done", file=sys.stderr, flush=True)
        fans = [fan_out(bench) for _ in range(ROUNDS)]
    b, o = [r["bare"] for r in rounds], [r["ours"] for r in rounds]
    print(f"{ROUNDS} rounds, {DELIVERIES:,} deliveries each, RSA-2048, 2 KB, {HOSTS} hosts; median (spread)")
    print(row("bare loop: deliveries per second", [r["per_second"] for r in b]))
    print(row("one worker process: deliveries per second", [r["per_second"] for r in o]))
    print(row("  ratio to bare", [x["per_second"] / y["per_second"] for x, y in zip(o, b, strict=True)], 2))
    print(row("bare loop: CPU us per delivery", [r["cpu_us"] for r in b]))
    print(row("one worker process: CPU us per delivery", [r["cpu_us"] for r in o]))
    print(row("  ratio to bare", [x["cpu_us"] / y["cpu_us"] for x, y in zip(o, b, strict=True)], 2))
    print(row("Redis: CPU us per delivery", [r["redis_us"] for r in o]))
    print(row(f"fan-out to {INBOXES:,}: accepted per second", [f["per_second"] for f in fans]))
    print(row("  server CPU us per delivery", [f["server_us"] for f in fans], 1))
    print(row("  Redis bytes per pending delivery, all indexes counted", [f["bytes"] for f in fans]))
    Path("build").mkdir(exist_ok=True)
    Path("build/bench.json").write_text(json.dumps({"rounds": rounds, "fan_out": fans}, indent=2))


if __name__ == "__main__":
    main()
