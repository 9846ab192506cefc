"""HTTP/1.1 on kept connections beside HTTP/2 multiplexed on one: what a POST costs the client alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import certificates
from benchmarks.conditions import Conditions
from benchmarks.figures import Figure, Section, ratios
from benchmarks.load import BODY_BYTES, CONCURRENCY, FEW_HOSTS, HOSTS, address
from benchmarks.machine import ROOT
from benchmarks.peers.contender import PYTHON
from benchmarks.processes import PATIENCE, Sink, process
from benchmarks.race import say

#: of `benchmarks/http_clients`, with the way in which each is told of
CLIENTS: Final = {
    "own": "own connection, HTTP/1.1",
    "aiohttp": "aiohttp, HTTP/1.1",
    "frames": "frames by hand, HTTP/2",
    "h2": "h2 alone, HTTP/2",
    "niquests": "niquests, HTTP/2",
}
#: those that only the environment of the peers has, and what they import
_PEERS: Final = {"h2": "h2", "niquests": "niquests"}
#: so many times as long does this one take
_SLOW: Final = {"niquests": 4}
_ALL_HOSTS: Final = (1, FEW_HOSTS, HOSTS)


@dataclass(frozen=True)
class Lap:
    cpu_us: float
    per_second: float
    #: share of a core that the client used
    busy: float
    connections: int
    #: of the last request: its frames or lines, before TLS
    bytes: int


def run(conditions: Conditions) -> Section:
    posts = conditions.pick(20_000, 4_000)
    title = (
        f"HTTP clients: {posts:,} POSTs of {BODY_BYTES} bytes by one process, {CONCURRENCY} at a time, TLS"
    )
    names, notes = present(conditions)
    figures: list[Figure] = []
    for hosts in _ALL_HOSTS:
        laps = _race(names, hosts, posts, conditions.rounds)
        figures += _figures(laps, hosts)
        notes.append(f"{_so_many(hosts)}: {_told(laps)}")
    return Section("http_clients", title, figures, [*_about(posts), *notes])


def present(conditions: Conditions) -> tuple[list[str], list[str]]:
    """Clients that can take part, and notes that say which versions, or what is missing."""
    names = [name for name in CLIENTS if name not in _PEERS]
    if not conditions.peers or not PYTHON.exists():
        return names, [f"{', '.join(_PEERS)}: left out, they are not installed, `make bench` does it"]
    notes = []
    for name, package in _PEERS.items():
        script = f"import {package}; from importlib.metadata import version; print(version({package!r}))"
        done = subprocess.run(
            [PYTHON, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode == 0:
            names.append(name)
            notes.append(f"{name} {done.stdout.strip()}")
        else:
            notes.append(f"{name} is left out: build/peers has none, `make bench` installs it")
    return names, [", ".join(notes)]


def _race(names: list[str], hosts: int, posts: int, rounds: int) -> dict[str, list[Lap]]:
    """Each client once a round, in turns that begin with another one each time."""
    laps: dict[str, list[Lap]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="fedsvc-bench-") as directory:
        addresses = [address(number) for number in range(hosts)]
        authority, [certificate] = certificates.make(Path(directory), addresses, hosts)
        command = [sys.executable, "-m", "benchmarks.http_clients.inboxes", str(certificate)]
        with process(command, os.environ) as started:
            sink = Sink(started)
            for number in range(rounds):
                at = number % len(names)
                for name in names[at:] + names[:at]:
                    done = _lap(name, sink, hosts, posts // _SLOW.get(name, 1), authority)
                    laps[name].append(done)
                    say(
                        f"round {number + 1}, {_so_many(hosts)}: {CLIENTS[name]} {done.cpu_us:,.1f} us CPU, "
                        f"{done.per_second:,.0f}/s"
                    )
            sink.close()
    return laps


def _lap(name: str, sink: Sink, hosts: int, posts: int, authority: Path) -> Lap:
    """One run, in a process of its own. Raises RuntimeError if it fails, or not all arrived."""
    sink.expect(1)  # counts from 0
    python = PYTHON if name in _PEERS else sys.executable
    done = subprocess.run(
        [
            *(python, "-m", "benchmarks.http_clients", name, "--port", str(sink.ports[0])),
            *("--hosts", str(hosts), "--posts", str(posts), "--ca", str(authority)),
        ],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=PATIENCE,
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    sink.reached()
    told, seen = json.loads(done.stdout), sink.told()
    if seen["count"] != told["made"]:
        raise RuntimeError(f"{name}: {seen['count']} of {told['made']} arrived")
    if name not in ("own", "aiohttp") and seen["connections"] != hosts:
        raise RuntimeError(f"{name}: {seen['connections']} connections to {hosts} hosts")
    return Lap(
        told["cpu"] / posts * 1e6,
        posts / told["wall"],
        told["cpu"] / told["wall"],
        seen["connections"],
        seen["length"],
    )


def _figures(laps: dict[str, list[Lap]], hosts: int) -> list[Figure]:
    ours = [lap.cpu_us for lap in laps["own"]]
    where, told = _so_many(hosts), []
    for name, of_one in laps.items():
        cpu = [lap.cpu_us for lap in of_one]
        told.append(Figure(f"{where}, {CLIENTS[name]}: CPU per POST", "us", cpu, None, 1))
        if name != "own":
            told.append(
                Figure(
                    f"{where}, {CLIENTS[name]}: CPU per POST, to our own's", "x", ratios(cpu, ours), None, 2
                )
            )
        told.append(
            Figure(f"{where}, {CLIENTS[name]}: POSTs per second", "/s", [lap.per_second for lap in of_one])
        )
    return told


def _told(laps: dict[str, list[Lap]]) -> str:
    last = {name: of_one[-1] for name, of_one in laps.items()}
    return "; ".join(
        f"{name} {_counted(lap.connections, 'connection')}, {lap.bytes:,} bytes each, {lap.busy:.0%} busy"
        for name, lap in last.items()
    )


def _so_many(hosts: int) -> str:
    return _counted(hosts, "host")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _about(posts: int) -> list[str]:
    fewer = ", ".join(f"{name} makes {posts // times:,} POSTs" for name, times in _SLOW.items())
    return [
        "CPU of the client's process alone, once it is connected; a rate depends on the inboxes too, which "
        "run beside it, where the client does not use a core of its own",
        "frames by hand are a floor, not a client: answers are compared with the one that is known, windows "
        "are taken for endless, nothing has a deadline; our own connection has all that a worker's has",
        f"{fewer}, since it is slow",
    ]
