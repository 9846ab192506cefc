"""`python -m fuzz`, in tests/: calls of a real server, and parsers, with what nobody thought of.

Prints what was tried and what came of it; ends with 1 at the first defect, which it shows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fuzz.calls import Caller, Defect, Footprint, fuzz
from fuzz.parsers import PARSERS
from fuzz.running import instrumented
from fuzz.serving import serving

#: calls before memory is looked at, and between two looks
WARM_UP = 1000


def calls(console: Console, count: int, number: int) -> bool:
    with tempfile.TemporaryDirectory(prefix="fedsvc-fuzz-") as scratch, serving(Path(scratch)) as served:
        caller = Caller(served.channel, served.token)
        pid = served.fedsvc.process.pid
        begun = time.monotonic()
        marks = []
        try:
            made = 0
            while made < count:
                part = min(WARM_UP, count - made)
                fuzz(caller, part, number + made)
                made += part
                marks.append(Footprint.of(pid))
        except Defect as defect:
            console.print(f"{defect}\n{''.join(getattr(defect, '__notes__', ()))}", style="red", markup=False)
            return False
        seconds = time.monotonic() - begun
        table = Table(title=f"{count} generated calls, seed {number}, {seconds:.0f} s")
        table.add_column("method")
        table.add_column("calls", justify="right")
        for name, times in sorted(caller.methods.items()):
            if times > 1:
                table.add_row(name, str(times))
        console.print(table)
        table = Table(title="answers")
        for column in ("code", "calls"):
            table.add_column(column)
        for name, times in caller.answers.most_common():
            table.add_row(name, str(times))
        console.print(table)
        slowest, path = caller.slowest
        console.print(f"slowest: {slowest * 1000:.0f} ms, {path.rpartition('/')[2]}")
        console.print(
            f"server after each {WARM_UP} calls: "
            + ", ".join(f"{mark.megabytes:.0f} MB" for mark in marks)
            + f"; files open at last {marks[-1].files}"
        )
        for line in served.complaints:
            console.print(line, style="red", markup=False)
        return served.fedsvc.process.poll() is None and not served.complaints


def parsers(console: Console, names: list[str], inputs: int, number: int) -> bool:
    table = Table(title=f"parsers, seed {number}")
    for column in ("parser", "inputs", "seconds"):
        table.add_column(column, justify="left" if column == "parser" else "right")
    good = True
    with instrumented() as running:
        for name in names:
            begun = time.monotonic()
            ran = running.run(name, inputs, number)
            table.add_row(name, str(ran.inputs), f"{time.monotonic() - begun:.1f}")
            if ran.problem:
                console.print(f"{name}: {ran.problem}", style="red", markup=False)
                good = False
    console.print(table)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000, help="generated calls (20,000); 0 for none")
    parser.add_argument("--inputs", type=int, default=100_000, help="of each parser (100,000); 0 for none")
    parser.add_argument(
        "--parser", action="append", choices=sorted(PARSERS), help="only these parsers, no calls"
    )
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    console = Console(soft_wrap=True)
    good = True
    if chosen.calls and not chosen.parser:
        good = calls(console, chosen.calls, chosen.seed)
    if chosen.inputs:
        good = parsers(console, chosen.parser or list(PARSERS), chosen.inputs, chosen.seed) and good
    return 0 if good else 1


sys.exit(main())
