"""A rolling restart, again and again, of servers and workers on one Redis Cluster, under load.

    cd tests && ../.venv/bin/python -m rolling --rounds 3

Every member is replaced in turn, first by SIGTERM, then by SIGKILL, and one is added and another taken away.
Exits 0 only if nothing was lost, nothing sent twice that no kill explains, and no caller saw an error.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from rolling.drill import drill


async def run(options: argparse.Namespace, directory: Path) -> bool:
    holds = True
    async with drill(
        directory, size=options.size, hosts=options.hosts, rate=options.rate, seed=options.seed
    ) as fleet:
        for number in range(options.rounds):
            for kill in (False, True):
                before = fleet.twice
                async with fleet.load():
                    await fleet.restart_all(kill=kill)
                    await fleet.move_one(kill=kill)
                checks = await fleet.judge()
                if not kill:
                    checks["who is told to stop sends nothing twice"] = fleet.twice == before
                print(f"\nround {number + 1}, {'SIGKILL' if kill else 'SIGTERM'}; counts so far")
                print(fleet.summary())
                for name, good in checks.items():
                    print(f"  {'ok' if good else 'FAILED':<6} {name}", flush=True)
                holds = holds and all(checks.values())
        for error in fleet.counts.errors[:10]:
            print(f"  {error}")
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(prog="rolling", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=3, help="servers, and as many workers")
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--rate", type=float, default=100.0, help="deliveries per second")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fedsvc-rolling-") as directory:
        return 0 if asyncio.run(run(options, Path(directory))) else 1


if __name__ == "__main__":
    sys.exit(main())
