"""A fleet on a Redis Cluster under a steady load of calls, whose members are replaced one after the other."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from fedsvc_client import AsyncFedsvcClient, EventType, FedsvcError, QueueStats
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError
from servers.fleet import Fleet, Member, fleet
from servers.topologies import Cluster, cluster
from servers.unused_ports import unused_ports

from rolling.inboxes import Inboxes

KEY_ID = "https://rolling.example/users/a#main-key"
PARTITIONS = 16
STREAMS = ("ready:urgent", "ready:normal", "ready:bulk", "woken")


@dataclass
class Counts:
    """What happened, up to now."""

    calls: int = 0
    #: what callers were told that was no answer
    errors: list[str] = field(default_factory=list)
    #: what the service said that it took: host and activity id
    accepted: set[tuple[str, str]] = field(default_factory=set)
    #: seconds that the slowest call took, repetitions included
    slowest_call: float = 0.0
    restarts: int = 0
    #: deliveries that were with workers when they were killed: each may be sent once more
    at_stake: int = 0
    #: deliveries of which a watcher was told that they ended
    told: set[str] = field(default_factory=set)
    figures: int = 0


class Drill:
    """`servers` and `workers` members at a time, behind addresses of which one more is free."""

    def __init__(
        self, members: Fleet, redis: Cluster, *, size: int, hosts: int, rate: float, seed: int
    ) -> None:
        key = rsa.generate_private_key(65537, 2048)
        self._pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.inboxes = Inboxes(public.decode())
        self.counts = Counts()
        self._fleet = members
        self._cluster = redis
        self._hosts = hosts
        self._rate = rate
        self._random = random.Random(seed)
        self._places = [f"127.0.0.1:{port}" for port in unused_ports(size + 1)]
        self.target = ",".join(self._places)
        self.servers: dict[str, Member] = {}
        self.workers: list[Member] = []
        self._size = size
        self._number = 0
        self._clients: list[AsyncFedsvcClient] = []

    @property
    def retries(self) -> int:
        """Calls and streams that clients repeated."""
        return sum(client.retries for client in self._clients)

    async def start(self) -> None:
        await self.inboxes.start()
        self.servers = {place: self._fleet.server(place) for place in self._places[: self._size]}
        self.workers = [self._fleet.worker() for _ in range(self._size)]
        for member in (*self.servers.values(), *self.workers):
            await asyncio.to_thread(member.ready)

    # Load

    @asynccontextmanager
    async def load(self, callers: int = 4) -> AsyncIterator[None]:
        """Calls at a steady rate, and watchers, for as long as the block takes. It ends once every call was
        answered, everything is delivered, and watchers were told so."""
        stop = asyncio.Event()
        self._clients += [AsyncFedsvcClient(self.target, timeout=20.0) for _ in range(callers + 1)]
        clients = self._clients[-callers - 1 :]
        watching = await self._watch(clients[-1])
        calling = [asyncio.create_task(self._call_on(client, stop, callers)) for client in clients[:-1]]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*calling)
            ended = (await self.drained()).delivered
            async with asyncio.timeout(30):
                while len(self.counts.told) < ended and not any(task.done() for task in watching):
                    await asyncio.sleep(0.05)
            for task in watching:
                task.cancel()
            await asyncio.wait(watching)
            for client in clients:
                await client.close()
        for task in watching:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _call_on(self, client: AsyncFedsvcClient, stop: asyncio.Event, callers: int) -> None:
        """One call after the other, as a web application does; a fan-out now and then."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not stop.is_set():
            many = self._random.random() < 0.2
            targets = self._random.sample(range(self._hosts), 10 if many else 1)
            await self._call(client, targets)
            due += len(targets) * callers / self._rate
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _call(self, client: AsyncFedsvcClient, targets: Sequence[int]) -> None:
        self._number += 1
        activity: dict[str, Any] = {
            "id": f"https://rolling.example/activities/{self._number}",
            "type": self._random.choice(("Create", "Like", "Announce")),
            "actor": "https://rolling.example/users/a",
            "object": f"https://rolling.example/objects/{self._number}",
        }
        begun = time.monotonic()
        urls = [self.inboxes.url(target) for target in targets]
        try:
            if len(urls) == 1:
                await client.queue_activity(activity, urls[0], private_key=self._pem, key_id=KEY_ID)
            else:
                answer = await client.fan_out(activity, urls, private_key=self._pem, key_id=KEY_ID)
                assert answer.accepted + answer.duplicates == len(urls), answer
        except FedsvcError as error:
            self.counts.errors.append(f"{type(error).__name__}: {error}")
        else:
            self.counts.accepted |= {(self.inboxes.host(t), activity["id"]) for t in targets}
        self.counts.calls += 1
        self.counts.slowest_call = max(self.counts.slowest_call, time.monotonic() - begun)

    async def _watch(self, client: AsyncFedsvcClient) -> list[asyncio.Task[None]]:
        begun = asyncio.Event()

        async def outcomes() -> None:
            async for event in client.watch_outcomes(heartbeats=True):
                begun.set()
                if event.type is EventType.OUTCOME and event.delivery is not None:
                    self.counts.told.add(event.delivery.delivery_id)

        async def figures() -> None:
            async for _ in client.watch_queue_stats(0.2):
                self.counts.figures += 1

        tasks = [asyncio.create_task(outcomes()), asyncio.create_task(figures())]
        async with asyncio.timeout(30):
            await begun.wait()
        return tasks

    # Replacing

    async def restart_all(self, *, kill: bool) -> None:
        """A server and a worker at a time, in turn, each back before the next goes."""
        for place, worker in list(zip(self.servers, self.workers, strict=True)):
            await self._end(self.servers[place], worker, kill=kill)
            self.servers[place] = self._fleet.server(place)
            self.workers[self.workers.index(worker)] = successor = self._fleet.worker()
            for member in (self.servers[place], successor):
                await asyncio.to_thread(member.ready)

    async def move_one(self, *, kill: bool) -> None:
        """A server and a worker more; then one of each less, for good."""
        (free,) = set(self._places) - self.servers.keys()
        server, worker = self._fleet.server(free), self._fleet.worker()
        for member in (server, worker):
            await asyncio.to_thread(member.ready)
        self.servers[free] = server
        self.workers.append(worker)
        gone = next(iter(self.servers))
        await self._end(self.servers.pop(gone), self.workers.pop(0), kill=kill)

    async def _end(self, server: Member, worker: Member, *, kill: bool) -> None:
        self.counts.restarts += 2
        if kill:
            # What the worker holds is counted while it stands still.
            os.kill(worker.process.pid, signal.SIGSTOP)
            self.counts.at_stake += await asyncio.to_thread(self._held_by, worker.process.pid)
            await asyncio.gather(asyncio.to_thread(server.kill), asyncio.to_thread(worker.kill))
        else:
            codes = await asyncio.gather(asyncio.to_thread(server.stop), asyncio.to_thread(worker.stop))
            assert not any(codes), f"{server.log[-1000:]} {worker.log[-1000:]}"

    def _held_by(self, pid: int) -> int:
        """Deliveries in flight with the worker of this process."""
        held = 0
        with RedisCluster("127.0.0.1", self._cluster.nodes[0].port) as client:
            for partition in range(PARTITIONS):
                for stream in STREAMS:
                    try:
                        consumers = client.xinfo_consumers(f"fedsvc:{{p{partition}}}:{stream}", "workers")
                    except ResponseError:
                        continue  # nothing has come there yet
                    held += sum(c["pending"] for c in consumers if f"-{pid}-" in c["name"].decode())
        return held

    # The end

    async def drained(self) -> QueueStats:
        """The figures once nothing is pending and every outcome is archived."""
        async with AsyncFedsvcClient(self.target, timeout=20.0) as client, asyncio.timeout(90):
            while True:
                stats = await client.get_queue_stats()
                if not stats.pending and not stats.archive_backlog:
                    return stats
                await asyncio.sleep(0.1)

    async def judge(self) -> dict[str, bool]:
        """What must hold now, and whether it does."""
        counts, taken = self.counts, self.inboxes.taken
        stats = await self.drained()
        return {
            "callers saw no error": counts.errors == [],
            "lost 0": counts.accepted <= taken.keys(),
            "nothing arrived that was not accepted": taken.keys() <= counts.accepted,
            "sent twice: no more than was in flight at kills": self.twice <= counts.at_stake,
            "accepted as the callers were told": stats.accepted == len(counts.accepted),
            "delivered all": stats.delivered == stats.accepted,
            "the sum is conserved": stats.conserved,
            "every signature verified": self.inboxes.unsigned == 0,
            "every outcome was told to who watched": len(counts.told) == stats.delivered,
        }

    @property
    def twice(self) -> int:
        """Deliveries that came once more than they should, all together."""
        return self.inboxes.taken.total() - len(self.inboxes.taken)

    def summary(self) -> str:
        counts = self.counts
        return (
            f"restarts {counts.restarts}, calls {counts.calls}, repeated {self.retries}, errors seen "
            f"{len(counts.errors)}, slowest call {counts.slowest_call:.2f} s\n"
            f"deliveries accepted {len(counts.accepted)}, arrived {len(self.inboxes.taken)}, "
            f"lost {len(counts.accepted - self.inboxes.taken.keys())}, sent twice {self.twice} "
            f"(in flight at kills {counts.at_stake}), outcomes told {len(counts.told)}, "
            f"figures told {counts.figures}"
        )

    async def stop(self) -> None:
        await self.inboxes.stop()


def settings(redis: Cluster) -> dict[str, str]:
    return {
        "REDIS_URL": redis.url,
        "FEDSVC_PARTITIONS": str(PARTITIONS),
        "FEDSVC_LEASE": "2",
        "FEDSVC_RETRY_SCALE": "0.01",
        "FEDSVC_MAX_CONNECTION_AGE": "5",
    }


@asynccontextmanager
async def drill(directory: Path, *, size: int, hosts: int, rate: float, seed: int) -> AsyncIterator[Drill]:
    """A fleet of `size` servers and as many workers, ready, on a cluster of its own."""
    (directory / "cluster").mkdir()
    with cluster(directory / "cluster") as redis, fleet(directory, **settings(redis)) as members:
        made = Drill(members, redis, size=size, hosts=hosts, rate=rate, seed=seed)
        try:
            await made.start()
            yield made
        finally:
            await made.stop()
