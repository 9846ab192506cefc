"""How long `fedsvc dev` takes on an empty directory until it serves."""

from __future__ import annotations

import os
import sys
import tempfile
import time

from benchmarks.conditions import Conditions
from benchmarks.figures import Figure, Section, at_most
from benchmarks.processes import line_of, process

LEFT_OUT = ("FEDSVC_", "REDIS_URL", "DATABASE_URL")


def run(conditions: Conditions) -> Section:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_OUT)}
    took = []
    for turn in range(conditions.rounds + 1):
        with tempfile.TemporaryDirectory(prefix="fedsvc-bench-") as directory:
            command = [
                *(sys.executable, "-m", "fedsvc", "dev", "--data-dir", directory),
                *("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"),
            ]
            begun = time.monotonic()
            with process(command, {**environment, "FEDSVC_LOG_LEVEL": "error"}) as started:
                line = line_of(started)
                if turn:  # once before, so that the files are in memory
                    took.append(time.monotonic() - begun)
            if not line.startswith("fedsvc is ready: "):
                raise RuntimeError(line)
    return Section(
        "cold_start",
        "Cold start of `fedsvc dev`: Valkey, migrated archive, server and worker, to the ready line",
        [Figure("seconds", "s", took, at_most(3), 2)],
    )
