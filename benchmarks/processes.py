"""Processes of a benchmark: each ends with the scope that started it, most also with us.

None has a `preexec_fn`: it would run between fork and exec in a process with threads of gRPC, and hang or die
there now and then.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from benchmarks.load import pem
from benchmarks.machine import ROOT

#: seconds within which anything that is waited for must happen
PATIENCE = 300.0
#: seconds that a process gets to end by itself
GRACE = 30.0


class Late(Exception):
    """Something did not happen in time, or a process ended before it was done."""


@contextmanager
def process(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes] | None = None, **how: Any
) -> Iterator[subprocess.Popen[str]]:
    """Runs within; its standard input and output are pipes unless `how` says otherwise."""
    started = subprocess.Popen(
        command,
        env=dict(environment),
        cwd=ROOT,
        text=True,
        stderr=log,
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **how},
    )
    try:
        yield started
    finally:
        with suppress(OSError):
            if started.stdin is not None:
                started.stdin.close()
        if started.poll() is None:
            started.terminate()
        try:
            started.wait(GRACE)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        if started.stdout is not None:
            started.stdout.close()


def line_of(started: subprocess.Popen[str], patience: float = PATIENCE) -> str:
    """Its next line. Raises Late, and kills it, if there is none in time."""
    assert started.stdout is not None
    watchdog = threading.Timer(patience, started.kill)
    watchdog.start()
    try:
        line = started.stdout.readline()
    finally:
        watchdog.cancel()
    if not line:
        raise Late(f"no line from {started.args!r} within {patience:g} s")
    return line


class Sink:
    """The inboxes of `benchmarks/sink.py`."""

    def __init__(self, started: subprocess.Popen[str]) -> None:
        self._process = started
        self.pid = started.pid
        self.ports: list[int] = json.loads(line_of(started))
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(started.stdout,), daemon=True)
        self._reader.start()

    def expect(self, *counts: int) -> None:
        """Count from 0, from now on; `reached` then waits for each of these counts."""
        self._say("expect " + " ".join(map(str, counts)))
        while "expecting" not in json.loads(self._lines.get(timeout=PATIENCE)):
            pass  # what was reached before and nobody waited for

    def reached(self, sender: int = 0, patience: float = PATIENCE) -> float:
        """Waits for the next expected count; when it came, by the monotonic clock. Raises Late, also when the
        process `sender` has ended before."""
        end = time.monotonic() + patience
        while True:
            with suppress(queue.Empty):
                return float(json.loads(self._lines.get(timeout=0.5))["at"])
            if time.monotonic() > end or (sender and has_ended(sender)):
                raise Late(f"what was expected did not come: {self.told()}")

    def told(self) -> dict[str, Any]:
        self._say("told")
        answer: dict[str, Any] = json.loads(self._lines.get(timeout=PATIENCE))
        return answer

    def times(self) -> dict[str, float]:
        """When what is below /t/ came, by the monotonic clock."""
        self._say("times")
        answer: dict[str, float] = json.loads(self._lines.get(timeout=PATIENCE))
        return answer

    def release(self) -> None:
        self._say("release")

    def close(self) -> None:
        """Lets it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join(GRACE)

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._lines.put(line)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def has_ended(pid: int) -> bool:
    """Whether a child of ours does not run any more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rsplit(")", 1)[1].split()[0] == "Z"


@contextmanager
def sink(certificates: Sequence[Path] = ()) -> Iterator[Sink]:
    command = [sys.executable, "-m", "benchmarks.sink", *map(str, certificates)]
    with process(command, os.environ) as started:
        inboxes = Sink(started)
        try:
            yield inboxes
        finally:
            inboxes.close()


def key_file(directory: Path, algorithm: str) -> Path:
    """Of the key that signs, as PEM."""
    path = directory / f"{algorithm}.pem"
    if not path.exists():
        path.write_text(pem(algorithm))
    return path
