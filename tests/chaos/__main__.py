"""Chaos: deliveries to many hosts while workers and the server are killed, Redis restarts and SQL goes away.

    python -m chaos --seconds 600

In the end every delivery that was accepted must have arrived or be accounted for, and every count be exact.
Prints a summary with `lost 0`; exits 0 only if all of it holds. `--seed` repeats the schedule of a run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from fedsvc_client import AsyncFedsvcClient, FedsvcError, QueueStats, Unavailable
from redis import Redis
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import RedisError
from servers.postgres import PostgresServer
from servers.processes import Fedsvc, descendants
from servers.valkey import ValkeyServer
from sqlalchemy import func, select

from chaos.inboxes import Inboxes
from fedsvc.archive.engine import create_engine
from fedsvc.archive.tables import deliveries
from fedsvc.config import Settings

KEY_ID = "https://chaos.example/users/a#main-key"
DRAIN_S = 180.0
KILLS = 21
SQL_AWAY_S = 30.0


@dataclass
class Sabotage:
    """What was done, and what it may have cost."""

    kills: dict[str, int] = field(default_factory=dict)
    redis_restarts: int = 0
    sql_away_s: float = 0.0
    #: deliveries that were with a worker when it was killed: each may be sent once more
    at_stake: int = 0


class Plant:
    """The service with everything around it, as separate processes."""

    def __init__(self, directory: Path, port_of: Callable[[], int]) -> None:
        self.directory = directory
        self.valkey = ValkeyServer(
            self._folder("valkey"), appendonly=True, port=port_of(), extra=("--appendfsync", "always")
        )
        self.postgres = PostgresServer()
        self.grpc = f"127.0.0.1:{port_of()}"
        self.settings = {
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": self.postgres.url,
            "FEDSVC_LISTEN": self.grpc,
            "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
            "FEDSVC_ALLOW_HTTP": "true",
            "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
            "FEDSVC_KEY_ENCRYPTION_KEYS": secrets.token_hex(32),
            "FEDSVC_RETRY_SCALE": "0.01",
            "FEDSVC_LEASE": "2",
            "FEDSVC_READY_WINDOW": "4",  # origins' lines are in use too
            "FEDSVC_LOG_LEVEL": "warning",
        }
        self.processes = {
            name: Fedsvc(self._folder(name), command, settings=self.settings)
            for name, command in (("server", "server"), ("worker-1", "worker"), ("worker-2", "worker"))
        }

    def _folder(self, name: str) -> Path:
        folder = self.directory / name
        folder.mkdir()
        return folder

    def start(self) -> None:
        self.valkey.start()
        migration = Fedsvc(self._folder("migrate"), "migrate", settings=self.settings).start()
        if migration.process.wait(60):
            raise RuntimeError(migration.stderr)
        for process in self.processes.values():
            process.start()

    def stop(self) -> None:
        for process in self.processes.values():
            process.__exit__(None, None, None)
        self.valkey.close()
        self.postgres.close()


class Chaos:
    def __init__(self, plant: Plant, inboxes: Inboxes, options: argparse.Namespace) -> None:
        self.plant = plant
        self.inboxes = inboxes
        self.options = options
        self.random = random.Random(options.seed)
        self.sabotage = Sabotage()
        #: what the service has said that it took: host and activity id
        self.accepted: set[tuple[str, str]] = set()
        self.duplicates_told = 0
        key = ed25519.Ed25519PrivateKey.generate()
        self._pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        self._number = 0

    # Work

    def _activity(self) -> dict[str, Any]:
        self._number += 1
        id = f"https://chaos.example/activities/{self._number}"
        kind = self.random.choice(["Create", "Update", "Announce", "Follow"])
        return {
            "@context": "https://www.w3.org/ns/activitystreams",
            "id": id, "type": kind, "actor": "https://chaos.example/users/a",
            "object": f"https://chaos.example/objects/{self._number}",
        }  # fmt: skip

    async def produce(self, until: float) -> None:
        """Calls at a steady rate; each is repeated under its request id until it is answered."""
        running: set[asyncio.Task[None]] = set()
        async with AsyncFedsvcClient(self.plant.grpc, timeout=5.0) as client:
            started = time.monotonic()
            sent = 0
            while time.monotonic() < until:
                due = (time.monotonic() - started) * self.options.rate
                while sent < due and len(running) < 64:
                    call, size = self._call()
                    sent += size
                    task = asyncio.create_task(self._answered(client, call))
                    running.add(task)
                    task.add_done_callback(running.discard)
                await asyncio.sleep(0.02)
            while running:
                await asyncio.wait(set(running))

    def _call(self) -> tuple[Callable[[AsyncFedsvcClient], Any], int]:
        request_id = f"chaos-{self.options.seed}-{self._number}"
        shape = self.random.random()
        if shape < 0.5:
            return self._one(request_id), 1
        if shape < 0.75:
            return self._several(request_id), 5
        return self._many(request_id), 20

    def _targets(self, count: int) -> list[int]:
        return self.random.sample(range(self.options.hosts), count)

    def _one(self, request_id: str) -> Callable[[AsyncFedsvcClient], Any]:
        activity, (target,) = self._activity(), self._targets(1)

        async def call(client: AsyncFedsvcClient) -> None:
            await client.queue_activity(
                activity,
                self.inboxes.url(target),
                private_key=self._pem,
                key_id=KEY_ID,
                request_id=request_id,
            )
            self._took(activity, [target])

        return call

    def _several(self, request_id: str) -> Callable[[AsyncFedsvcClient], Any]:
        items = [(self._activity(), target) for target in self._targets(5)]

        async def call(client: AsyncFedsvcClient) -> None:
            answers = await client.queue_activities(
                [{"activity": a, "destination": self.inboxes.url(t)} for a, t in items],
                private_key=self._pem, key_id=KEY_ID, request_id=request_id,
            )  # fmt: skip
            for answer, (activity, target) in zip(answers, items, strict=True):
                if answer.error is not None:
                    raise RuntimeError(f"refused: {answer.error}")
                self._took(activity, [target])

        return call

    def _many(self, request_id: str) -> Callable[[AsyncFedsvcClient], Any]:
        activity, targets = self._activity(), self._targets(20)

        async def call(client: AsyncFedsvcClient) -> None:
            answer = await client.fan_out(
                activity, [self.inboxes.url(t) for t in targets],
                private_key=self._pem, key_id=KEY_ID, request_id=request_id,
            )  # fmt: skip
            if answer.rejected or answer.accepted + answer.duplicates != len(targets):
                raise RuntimeError(f"not all were accepted: {answer}")
            self._took(activity, targets)

        return call

    def _took(self, activity: dict[str, Any], targets: list[int]) -> None:
        for target in targets:
            self.accepted.add((self.inboxes.host(target), activity["id"]))

    async def _answered(self, client: AsyncFedsvcClient, call: Callable[[AsyncFedsvcClient], Any]) -> None:
        end = time.monotonic() + 120
        while True:
            try:
                await call(client)
                return
            except Unavailable:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)

    # Sabotage

    def schedule(self, seconds: float) -> list[tuple[float, str]]:
        """When (seconds from the start) what happens."""
        quiet = 5.0
        times = sorted(self.random.uniform(quiet, seconds - quiet) for _ in range(KILLS))
        victims = ["worker-1", "worker-2", "server"]
        events = [(at, f"kill {victims[n % 3]}") for n, at in enumerate(times)]
        events += [(seconds * 0.3, "restart redis by SIGKILL"), (seconds * 0.7, "restart redis by SIGTERM")]
        events.append((seconds * 0.45, "take SQL away"))
        return sorted(events)

    async def sabotage_all(self, started: float, seconds: float) -> None:
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
        process = self.plant.processes[victim]
        if process.process.poll() is not None:
            raise RuntimeError(f"{victim} ended by itself: {process.stderr[-2000:]}")
        if victim != "server":
            # What it holds is counted while it stands still.
            below = [process.process.pid, *descendants(process.process.pid)]
            for pid in below:
                os.kill(pid, signal.SIGSTOP)
            self.sabotage.at_stake += await asyncio.to_thread(self._held_by, set(below))
        process.kill()
        self.sabotage.kills[victim] = self.sabotage.kills.get(victim, 0) + 1
        process.start()

    def _held_by(self, pids: set[int]) -> int:
        """Deliveries in flight with workers of these process ids."""
        end = time.monotonic() + 20
        while True:
            try:
                with self.plant.valkey.client() as redis:
                    return sum(
                        _held(redis, key, pids) for key in redis.scan_iter("fedsvc:{p*}:*", _type="stream")
                    )
            except RedisAway:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _restart_redis(self, kill: bool) -> None:
        if kill:
            self.plant.valkey.kill()
        else:
            self.plant.valkey.stop()
        time.sleep(1.0)
        self.plant.valkey.start()
        self.sabotage.redis_restarts += 1

    async def _sql_away(self) -> None:
        began = time.monotonic()
        await asyncio.to_thread(self.plant.postgres.stop)
        await asyncio.sleep(SQL_AWAY_S)
        await asyncio.to_thread(self.plant.postgres.start)
        self.sabotage.sql_away_s = time.monotonic() - began

    # The end

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
                f"  {time.monotonic() - started:6.1f} s  accepted {len(self.accepted)}, "
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
        lost = self.accepted - taken - dead
        checks = {
            "lost": len(lost) == 0,
            "accepted as the callers were told": stats.accepted == len(self.accepted),
            "nothing arrived that was not accepted": taken <= self.accepted,
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
    plant = Plant(directory, free_port)
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
            group.create_task(chaos.produce(started + options.seconds))
            group.create_task(chaos.sabotage_all(started, options.seconds))
        print(f"  {time.monotonic() - started:6.1f} s  no more work, no more sabotage", flush=True)
        stats = await chaos.drained()
        talking.cancel()
        return await chaos.judge(stats)
    finally:
        await inboxes.stop()


def _held(redis: Redis, key: bytes, pids: set[int]) -> int:
    try:
        consumers = redis.xinfo_consumers(key, "workers")
    except RedisError as error:
        if "NOGROUP" in str(error):
            return 0
        raise
    return sum(c["pending"] for c in consumers if int(c["name"].rsplit(b"-", 2)[1]) in pids)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
