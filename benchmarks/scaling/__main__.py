"""How far it goes: costs measured on this machine, a model driven by them, the model beside a real run.

    python -m benchmarks.scaling [measure] [compare] [table] [--seed N] [--database URL] [--write-docs]

All three without a word. `measure` takes a few minutes and writes build/scaling.json, which the others read;
`compare` runs the same schedule through the model and the service; `table` sizes some loads. `--write-docs`
puts the results into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks import machine
from benchmarks.scaling import comparison, measure, sizing
from benchmarks.scaling.model import Costs

RESULT: Final = machine.ROOT / "build/scaling.json"
PAGE: Final = machine.ROOT / "docs/scaling.md"
BEGIN, END = "<!-- measured: {} -->", "<!-- end: {} -->"
SEED: Final = 20_261_124


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__.split("\n", 1)[0])
    parser.add_argument("parts", nargs="*", metavar="measure|compare|table")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--database", default="", help="URL of a PostgreSQL to write rows to; SQLite if none")
    parser.add_argument("--hosts", type=int, default=10_000, help="hosts with TLS that are connected to")
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    parts = options.parts or ([] if options.write_docs else ["measure", "compare", "table"])
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in parts:
        result |= _part(part, options, result)
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=2))
    if options.write_docs:
        write_docs(result)
    return 0


def _part(part: str, options: argparse.Namespace, result: dict[str, Any]) -> dict[str, Any]:
    if part == "measure":
        with tempfile.TemporaryDirectory(prefix="fedsvc-bench-") as directory:
            found = measure.everything(Path(directory), options.database, options.hosts, 2)
        found["about"] = machine.about()
        print(figures(found))
        return found
    if "costs" not in result:
        raise SystemExit(
            "no costs are measured yet: run `python -m benchmarks.scaling measure` first, some minutes"
        )
    costs = Costs(**result["costs"])
    print(f"\nseed {options.seed}")
    if part == "compare":
        compared = comparison.compare(costs, options.seed)
        print(compared_table(compared))
        return {"compared": compared_table(compared), "seed": options.seed}
    if part == "table":
        rows = [
            sizing.sized(load, costs, sizing.poll_cost(result["idle"]), options.seed) for load in sizing.LOADS
        ]
        print(sizing.table(rows, markdown=False))
        return {
            "sized": [sizing.told(row) for row in rows],
            "table": sizing.table(rows, markdown=True),
            "seed": options.seed,
        }
    raise SystemExit(f"there is no part {part!r}")


def figures(found: dict[str, Any]) -> str:
    c, idle, tls = found["costs"], found["idle"], found["connecting"]
    us = 1e6
    rows = [
        ("worker CPU, a delivery (RSA-2048, 2 KB, connection kept)", f"{c['worker_delivery'] * us:,.0f} us"),
        ("deliveries a second that a core of a worker does", f"{1 / c['worker_delivery']:,.0f}"),
        ("worker CPU, a new connection with TLS", f"{c['worker_handshake'] * us:,.0f} us"),
        ("worker CPU with nothing to do, of a core", f"{idle['worker']:.1%}"),
        (
            "Redis CPU, a delivery: handed out, settled, archived, forgotten",
            f"{c['redis_deliver'] * us:,.0f} us",
        ),
        ("Redis CPU, a delivery in a fan-out accepted", f"{c['redis_accept'] * us:,.1f} us"),
        ("Redis CPU, a call, beside its deliveries", f"{c['redis_call'] * us:,.0f} us"),
        (
            "Redis CPU with one, two idle workers, of a core",
            f"{idle['redis_one']:.1%}, {idle['redis_two']:.1%}",
        ),
        ("server CPU, a call with one delivery", f"{c['server_call'] * us:,.0f} us"),
        ("server CPU, a delivery in a fan-out", f"{c['server_delivery'] * us:,.1f} us"),
        ("Redis memory, a pending delivery in a wide fan-out", f"{c['pending_bytes']:,.0f} bytes"),
        ("Redis memory, a finished delivery until it is forgotten", f"{c['finished_bytes']:,.0f} bytes"),
        ("worker memory, with nothing connected", f"{c['worker_bytes'] / 1e6:,.0f} MB"),
        ("worker memory, a connection with TLS", f"{c['connection_bytes'] / 1e3:,.0f} KB"),
        (f"rows of outcomes a second, {found['database']}, one writer", f"{c['archive_rows']:,.0f}"),
        (
            f"handshakes a host: {tls['hosts']:,} hosts, {tls['deliveries']:,} deliveries, two workers",
            f"{tls['per_host']:.2f}",
        ),
    ]
    return "\n".join(["| what | measured |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def compared_table(compared: list[comparison.Compared]) -> str:
    lines = ["| what | model | real | error |", "|---|---|---|---|"]
    for c in compared:
        lines.append(f"| {c.name} | {c.model:,.1f} {c.unit} | {c.real:,.1f} {c.unit} | {c.error:+.0%} |")
    return "\n".join(lines)


def write_docs(result: dict[str, Any]) -> None:
    about = result["about"]
    made = (
        f"Made {about['date'][:10]} at commit {about['commit']}, seed {result['seed']}: "
        f"{about['cores']} cores ({about['cpu']}), Python {about['python']}; load average before "
        f"{about['load_before']:.1f}."
    )
    text = PAGE.read_text()
    for name, block in (
        ("figures", f"{made}\n\n{figures(result)}"),
        ("compared", result["compared"]),
        ("table", result["table"]),
    ):
        begin, end = BEGIN.format(name), END.format(name)
        head, _, rest = text.partition(begin)
        _, found, tail = rest.partition(end)
        if not found:
            raise SystemExit(f"{PAGE.name} has no place for {name}")
        text = f"{head}{begin}\n{block}\n{end}{tail}"
    PAGE.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
