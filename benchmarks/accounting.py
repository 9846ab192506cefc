"""What processes cost, by the operating system's accounting (Linux)."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")


def cpu_seconds(pid: int) -> float:
    """CPU time of one process: all its threads, those that have ended too. It is the process's CPU-time
    clock (clock_getcpuclockid(3)), in nanoseconds where /proc counts hundredths of a second.

    Raises OSError if there is no such process.
    """
    return time.clock_gettime((~pid << 3) | 2)


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue  # it has ended meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def tree_cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its descendants, those that have ended and were waited for too."""
    seconds = 0.0
    for one in tree(pid):
        # one that ends just now is counted with its parent's next time
        with suppress(OSError):
            seconds += cpu_seconds(one) + _reaped_seconds(one)
    return seconds


def _reaped_seconds(pid: int) -> float:
    fields = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[13]) + int(fields[14])) / _TICKS


def resident_bytes(pid: int) -> int:
    """Memory of one process that is in RAM (VmRSS), pages that it shares included."""
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def machine_idle_seconds() -> float:
    """Time that all cores together had nothing to do, since the machine started."""
    return int((_PROC / "stat").read_text().splitlines()[0].split()[4]) / _TICKS
