"""Kills, restarts and outages, and what they may have cost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

from redis import Redis
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import RedisError
from servers.processes import descendants

from chaos.plant import Plant

KILLS = 21
SQL_AWAY_S = 30.0


class Sabotage:
    def __init__(self, plant: Plant, chance: random.Random) -> None:
        self._plant = plant
        self._random = chance
        self.kills: dict[str, int] = {}
        self.redis_restarts = 0
        self.sql_away_s = 0.0
        #: deliveries that were with a worker when it was killed: each may be sent once more
        self.at_stake = 0

    def schedule(self, seconds: float) -> list[tuple[float, str]]:
        """When (seconds from the start) what happens."""
        quiet = 5.0
        times = sorted(self._random.uniform(quiet, seconds - quiet) for _ in range(KILLS))
        victims = ["worker-1", "worker-2", "server"]
        events = [(at, f"kill {victims[n % 3]}") for n, at in enumerate(times)]
        events += [(seconds * 0.3, "restart redis by SIGKILL"), (seconds * 0.7, "restart redis by SIGTERM")]
        events.append((seconds * 0.45, "take SQL away"))
        return sorted(events)

    async def carry_out(self, started: float, seconds: float) -> None:
        away: asyncio.Task[None] | None = None
        for at, what in self.schedule(seconds):
            await asyncio.sleep(max(0.0, started + at - time.monotonic()))
            print(f"  {time.monotonic() - started:6.1f} s  {what}", flush=True)
            match what.split():
                case ["kill", victim]:
                    await self._kill(victim)
                case ["take", *_]:
                    away = asyncio.create_task(self._sql_away())
                case ["restart", *_]:
                    await asyncio.to_thread(self._restart_redis, what.endswith("SIGKILL"))
                case _:
                    raise ValueError(what)
        if away is not None:
            await away

    async def _kill(self, victim: str) -> None:
        process = self._plant.processes[victim]
        if process.process.poll() is not None:
            raise RuntimeError(f"{victim} ended by itself: {process.stderr[-2000:]}")
        if victim != "server":
            # What it holds is counted while it stands still.
            below = [process.process.pid, *descendants(process.process.pid)]
            for pid in below:
                os.kill(pid, signal.SIGSTOP)
            self.at_stake += await asyncio.to_thread(self._held_by, set(below))
        process.kill()
        self.kills[victim] = self.kills.get(victim, 0) + 1
        process.start()

    def _held_by(self, pids: set[int]) -> int:
        """Deliveries in flight with workers of these process ids."""
        end = time.monotonic() + 20
        while True:
            try:
                with self._plant.valkey.client() as redis:
                    return sum(
                        _held(redis, key, pids) for key in redis.scan_iter("fedsvc:{p*}:*", _type="stream")
                    )
            except RedisAway:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _restart_redis(self, kill: bool) -> None:
        if kill:
            self._plant.valkey.kill()
        else:
            self._plant.valkey.stop()
        time.sleep(1.0)
        self._plant.valkey.start()
        self.redis_restarts += 1

    async def _sql_away(self) -> None:
        began = time.monotonic()
        await asyncio.to_thread(self._plant.postgres.stop)
        await asyncio.sleep(SQL_AWAY_S)
        await asyncio.to_thread(self._plant.postgres.start)
        self.sql_away_s = time.monotonic() - began


def _held(redis: Redis, key: bytes, pids: set[int]) -> int:
    try:
        consumers = redis.xinfo_consumers(key, "workers")
    except RedisError as error:
        if "NOGROUP" in str(error):
            return 0
        raise
    return sum(c["pending"] for c in consumers if int(c["name"].rsplit(b"-", 2)[1]) in pids)
