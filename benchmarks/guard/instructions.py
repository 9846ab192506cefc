"""Instructions of each pure part, counted by callgrind: no neighbour on the machine disturbs them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.guard import parts
from benchmarks.machine import ROOT

#: how much more than the reference is let pass
TOLERANCE: Final = 1.25
_PATIENCE: Final = 300


def missing() -> str:
    """Why it cannot be counted here; empty if it can."""
    return "" if shutil.which("valgrind") else "valgrind is not installed"


def python() -> str:
    """Bytecode differs from one to the next, and counts with it."""
    return f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}"


def measure() -> dict[str, float]:
    """Instructions of one run of each part, in yardsticks: what another build of the same Python does
    otherwise is in both."""
    with tempfile.TemporaryDirectory(prefix="fedsvc-bench-") as directory:
        out = Path(directory) / "counts"
        command = [
            *("valgrind", "--tool=callgrind", "--quiet", "--dump-before=getppid"),
            f"--callgrind-out-file={out}",
            *(sys.executable, "-m", parts.__name__),
        ]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        for name in [name for name in environment if name.startswith("FEDSVC_")]:
            del environment[name]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, timeout=_PATIENCE
        )
        names: list[str] = json.loads(done.stdout)
        # before the first part, first part, between, second part...
        counts = [_total(out.with_suffix(f".{2 * number}")) for number in range(1, len(names) + 1)]
    return {name: count / counts[0] for name, count in zip(names, counts, strict=True)}


def _total(path: Path) -> int:
    for line in path.read_text().splitlines():
        if line.startswith("totals:"):
            return int(line.split()[1])
    raise ValueError(f"callgrind wrote no total into {path.name}")


def compare(measured: dict[str, float], reference: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Lines to show, and what has become dearer by more than TOLERANCE."""
    lines, worse = [], []
    if reference["python"] != python():
        return [f"instructions: not compared, the reference is of {reference['python']}"], []
    for name in sorted(measured.keys() | reference["parts"].keys()):
        now, then = measured.get(name), reference["parts"].get(name)
        if now is None or then is None:
            worse.append(f"{name}: {'has no reference' if then is None else 'is not measured any more'}")
            continue
        lines.append(
            f"instructions: {name:<20} {now:8.3f} yardsticks, reference {then:8.3f}: {now / then:.2f}"
        )
        if now > then * TOLERANCE:
            worse.append(f"{name}: {now / then:.2f} times the instructions of the reference")
    return lines, worse
