"""Chaos: deliveries to many hosts while workers and the server are killed, Redis restarts and SQL goes away.

    python -m chaos --seconds 600

In the end every delivery that was accepted must have arrived or be accounted for, and every count be exact.
Prints a summary with `lost 0`; exits 0 only if all of it holds. `--seed` repeats the schedule of a run.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from fedsvc_client import AsyncFedsvcClient, FedsvcError, QueueStats
from sqlalchemy import func, select

from chaos.inboxes import Inboxes
from chaos.plant import Plant
from chaos.sabotage import KILLS, Sabotage
from chaos.work import Work
from fedsvc.archive.engine import create_engine
from fedsvc.archive.tables import deliveries
from fedsvc.config import Settings

DRAIN_S = 180.0


class Chaos:
    def __init__(self, plant: Plant, inboxes: Inboxes, options: argparse.Namespace) -> None:
        self.plant = plant
        self.inboxes = inboxes
        self.options = options
        chance = random.Random(options.seed)
        self.work = Work(plant.grpc, inboxes, chance, f"chaos-{options.seed}", options.rate)
        self.sabotage = Sabotage(plant, chance)

    async def stats(self) -> QueueStats | None:
        try:
            async with AsyncFedsvcClient(self.plant.grpc, timeout=2.0) as client:
                return await client.get_queue_stats()
        except FedsvcError:
            return None

    async def progress(self, started: float) -> None:
        while True:
            await asyncio.sleep(5.0)
            stats = await self.stats()
            told = "no answer" if stats is None else f"pending {stats.pending}, parked {stats.parked}"
            print(
                f"  {time.monotonic() - started:6.1f} s  accepted {len(self.work.accepted)}, "
                f"arrived {len(self.inboxes.taken)}, {told}",
                flush=True,
            )

    async def drained(self) -> QueueStats:
        """Once nothing is pending and all is archived."""
        end = time.monotonic() + DRAIN_S
        while True:
            stats = await self.stats()
            if stats is not None and not stats.pending and not stats.archive_backlog:
                return stats
            if time.monotonic() > end:
                raise RuntimeError(f"not drained within {DRAIN_S:.0f} s: {stats}")
            await asyncio.sleep(0.5)

    async def judge(self, stats: QueueStats) -> bool:
        dead = set()
        async with AsyncFedsvcClient(self.plant.grpc) as client:
            token = ""
            while True:
                page = await client.list_dead_letters(page_size=1000, page_token=token)
                dead |= {(letter.host, letter.activity_id) for letter in page.dead_letters}
                token = page.next_page_token
                if not token:
                    break
        engine = create_engine(Settings.from_environment(self.plant.settings))
        async with engine.connect() as connection:
            archived = (await connection.execute(select(func.count()).select_from(deliveries))).scalar_one()
        await engine.dispose()
        taken = set(self.inboxes.taken)
        twice = sum(self.inboxes.taken.values()) - len(taken)
        lost = self.work.accepted - taken - dead
        checks = {
            "lost": len(lost) == 0,
            "accepted as the callers were told": stats.accepted == len(self.work.accepted),
            "nothing arrived that was not accepted": taken <= self.work.accepted,
            "delivered as the inboxes saw": stats.delivered == len(taken - dead),
            "dead as listed": stats.dead == len(dead),
            "the sum is conserved": stats.conserved,
            "every outcome is archived, once": archived == stats.delivered + stats.dead,
            "sent twice: no more than was in flight at kills": twice <= self.sabotage.at_stake,
            f"at least {KILLS - 1} kills": sum(self.sabotage.kills.values()) >= KILLS - 1,
            "Redis restarted twice": self.sabotage.redis_restarts == 2,
        }
        kills = ", ".join(f"{name} {n}" for name, n in sorted(self.sabotage.kills.items()))
        print(
            f"\nseed {self.options.seed}\n"
            f"accepted {stats.accepted}, delivered {stats.delivered}, dead {stats.dead}, "
            f"refused with 503 {self.inboxes.refused}\n"
            f"kills {sum(self.sabotage.kills.values())} ({kills}), Redis restarts "
            f"{self.sabotage.redis_restarts}, SQL away {self.sabotage.sql_away_s:.0f} s\n"
            f"sent twice {twice}, in flight at kills {self.sabotage.at_stake}, archived {archived}\n"
        )
        for name, holds in checks.items():
            print(f"  {'ok' if holds else 'FAILED':<7}{name}")
        print(f"\nlost {len(lost)}")
        for host, id in sorted(lost)[:10]:
            print(f"  {host} {id}")
        return all(checks.values())


async def run(options: argparse.Namespace, directory: Path, stack: ExitStack) -> bool:
    inboxes = Inboxes(options.seed, options.hosts, 0.2)
    await inboxes.start()
    plant = Plant(directory)
    stack.callback(plant.stop)
    await asyncio.to_thread(plant.start)
    chaos = Chaos(plant, inboxes, options)
    try:
        async with asyncio.timeout(60):
            while await chaos.stats() is None:
                await asyncio.sleep(0.2)
        started = time.monotonic()
        talking = asyncio.create_task(chaos.progress(started))
        async with asyncio.timeout(options.seconds + 300), asyncio.TaskGroup() as group:
            group.create_task(chaos.work.produce(started + options.seconds))
            group.create_task(chaos.sabotage.carry_out(started, options.seconds))
        print(f"  {time.monotonic() - started:6.1f} s  no more work, no more sabotage", flush=True)
        stats = await chaos.drained()
        talking.cancel()
        return await chaos.judge(stats)
    finally:
        await inboxes.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="how long work and sabotage go on")
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--rate", type=float, default=100.0, help="deliveries per second")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    options = parser.parse_args()
    print(
        f"seed {options.seed}: {options.seconds:.0f} s, {options.hosts} hosts, {options.rate:.0f}/s",
        flush=True,
    )
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsvc-chaos-")))
        return 0 if asyncio.run(run(options, directory, stack)) else 1


if __name__ == "__main__":
    sys.exit(main())
