"""`make bench`: fedsvc beside a bare loop and beside other queues, on loopback, in bounded time.

    python -m benchmarks [--rounds N] [--quick] [SCENARIO...]
    python -m benchmarks --write-docs [--page PAGE]

Every comparison is made in one run, by turns. Prints a table for each scenario and writes build/bench.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, table
from benchmarks.conditions import Conditions
from benchmarks.documentation import PAGE, write_docs
from benchmarks.figures import Section
from benchmarks.service import server_version

#: modules of `benchmarks/scenarios`, in the order in which they run
SCENARIOS = (
    *("worker", "pods", "peers", "flat", "fan_out", "rpc", "latency", "stats", "memory", "cold_start"),
    *("streams", "http_clients", "tls"),
)
RESULT = machine.ROOT / "build/bench.json"


def main() -> int:
    arguments = parsed()
    if arguments.write_docs:
        write_docs(json.loads(RESULT.read_text()), arguments.page)
        return 0
    conditions = Conditions(arguments.rounds, arguments.quick, not arguments.no_peers, arguments.server)
    about = {
        **machine.about(),
        "server": server_version(conditions.server),
        "rounds": conditions.rounds,
        "quick": conditions.quick,
    }
    print(table.told_of(about), flush=True)
    # thousands of connections; processes that we start have it from us
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sections = []
    begun = time.monotonic()
    for name in arguments.scenarios or SCENARIOS:
        sections.append(measured(name, conditions))
        print("\n" + table.plain(sections[-1]), flush=True)
        # at once, so that what was measured is not lost with what fails later
        write({**about, "seconds": round(time.monotonic() - begun)}, sections)
    wanted = [figure for section in sections for figure in section.figures if figure.target]
    missed = [figure.name for figure in wanted if not figure.reached]
    print(f"\n{len(wanted) - len(missed)} of {len(wanted)} targets reached, {time.monotonic() - begun:.0f} s")
    return 0


def measured(name: str, conditions: Conditions) -> Section:
    begun = time.monotonic()
    section: Section = importlib.import_module(f"benchmarks.scenarios.{name}").run(conditions)
    section.seconds = time.monotonic() - begun
    return section


def write(about: dict[str, Any], sections: list[Section]) -> None:
    RESULT.parent.mkdir(exist_ok=True)
    told = {"about": about, "sections": [section.as_json() for section in sections]}
    RESULT.write_text(json.dumps(told, indent=2) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(SCENARIOS)}; all if none is named"
    )
    parser.add_argument("--rounds", type=int, help="of each comparison; 3, or 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="small numbers, for a look")
    parser.add_argument("--no-peers", action="store_true", help="without other queues")
    parser.add_argument("--server", type=Path, help="program of the Redis or Valkey server")
    parser.add_argument("--write-docs", action="store_true", help="put build/bench.json into a page")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="that has a place for it; else docs/performance.md"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.scenarios) - set(SCENARIOS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if arguments.rounds is None:
        arguments.rounds = 1 if arguments.quick else 3
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
