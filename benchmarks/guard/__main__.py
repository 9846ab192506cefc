"""`make bench-smoke`: holds a short run against `reference.json`.

    python -m benchmarks.guard [--write]

Fails only if something has become grossly dearer: a ratio two or three times what it was
(`ratios.tolerance`), each of three times that it is measured, or a pure part by a quarter of its
instructions. What cannot be measured here is said and left out. `--write` makes what is measured the
reference: after a change for the better, or one that is worth what it costs.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.guard import instructions, ratios
from benchmarks.processes import Late

REFERENCE = Path(__file__).with_name("reference.json")
#: how often ratios are measured before one counts as worse
TURNS = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard")
    parser.add_argument("--write", action="store_true", help="make what is measured the reference")
    if parser.parse_args().write:
        return write()
    reference: dict[str, Any] = json.loads(REFERENCE.read_text())
    worse = counted(reference["instructions"]) + compared(reference["ratios"])
    for line in worse:
        print(f"WORSE {line}")
    return 1 if worse else 0


def counted(reference: dict[str, Any]) -> list[str]:
    """What has become worse."""
    if why := instructions.missing():
        print(f"instructions: not counted, {why}")
        return []
    lines, worse = instructions.compare(instructions.measure(), reference)
    print("\n".join(lines), flush=True)
    return worse


def compared(reference: dict[str, Any]) -> list[str]:
    """What has become worse, and was so each time that it was measured again; or why nothing could be
    measured at all."""
    measured: dict[str, float] = {}
    worse: list[str] = []
    for turn in range(TURNS):
        if turn:
            print(f"once more: {'; '.join(worse)}", flush=True)
        try:
            least = ratios.measure()
        except (Late, OSError, RuntimeError) as error:
            traceback.print_exc()
            worse = [f"not measured: {error!r}"]
            continue
        measured = {name: min(value, measured.get(name, value)) for name, value in least.items()}
        lines, worse = ratios.compare(measured, reference)
        print("\n".join(lines), flush=True)
        if not worse:
            break
    return worse


def write() -> int:
    if why := instructions.missing():
        print(why, file=sys.stderr)
        return 1
    told = {
        "instructions": {"python": instructions.python(), "parts": _rounded(instructions.measure())},
        "ratios": _rounded(ratios.measure()),
    }
    REFERENCE.write_text(json.dumps(told, indent=2) + "\n")
    print(f"wrote {REFERENCE}")
    return 0


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(main())
