"""A discrete-event model of servers, Redis masters, workers and hosts, driven by measured costs.

    call ──▶ server ──▶ master of each partition ──▶ slot of its host ──▶ place of its worker ──▶ POST
                                                         └ lane               └ queue               │
                                                         ▲                                          ▼
                                                         └────────────── master, settle ◀──────── answer

A server process, a master and a worker process are each one core that does one thing after the other.
Partitions are divided among the workers by the very code that workers use. What is not modelled: batches (the
costs are those of the batches that were measured), retries of what failed, probes, priorities, bandwidth.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.figures import percentile
from benchmarks.scaling.population import ANSWER_S, LIMIT, Manner, Population, jitter
from fedsvc.config import Settings
from fedsvc.domain.inbox import partition_of
from fedsvc.worker.affinity import divided
from fedsvc.worker.transport import KEEP_ALIVE_S

#: part of a worker's CPU time of a delivery that it spends before the POST
BEFORE: Final = 0.6
#: time to make a new connection (TCP and TLS 1.3 take two round trips), as part of the time to an answer, of
#: which no more than a median host's is taken for the way
CONNECT: Final = 0.8
#: seconds until a settlement is in Redis, at least
LINGER: Final = 0.02
#: seconds for which a delivery takes up a place of its worker, at most
SLOW: Final = 1.0


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU time in seconds, memory in bytes."""

    #: of a server process, for each call and each delivery in it
    server_call: float
    server_delivery: float
    #: of Redis, to accept a call (in each partition that it reaches) and each of its deliveries
    redis_call: float
    redis_accept: float
    #: of Redis to hand a delivery out, settle and forget it
    redis_deliver: float
    #: of a worker process for a delivery, and for a new connection with TLS
    worker_delivery: float
    worker_handshake: float
    pending_bytes: float
    finished_bytes: float
    connection_bytes: float
    worker_bytes: float
    #: rows of outcomes a second that the archive took
    archive_rows: float


@dataclass(frozen=True, slots=True)
class Plant:
    servers: int
    masters: int
    workers: int
    partitions: int
    #: FEDSVC_HOST_CONCURRENCY
    host_concurrency: int


class Core:
    """Does one thing after the other, in the order in which they come: what comes is always of now. Were it
    told of the future, whatever comes before that would wait for it."""

    def __init__(self) -> None:
        self._free = 0.0
        self.used = 0.0

    def take(self, now: float, cost: float) -> float:
        """Seconds until something is done that comes now."""
        self._free = max(now, self._free) + cost
        self.used += cost
        return self._free - now


class HostState:
    __slots__ = (
        "answer_s",
        "dead",
        "in_flight",
        "lane",
        "last_used",
        "limits",
        "master",
        "next_token",
        "slots",
        "waked",
        "well",
        "worker",
    )

    def __init__(self, answer_s: float, manner: Manner, master: Core, worker: Worker) -> None:
        self.answer_s = answer_s
        self.dead = manner is Manner.DEAD
        self.limits = manner is Manner.LIMITS
        self.well = manner is Manner.WELL
        self.master = master
        self.worker = worker
        self.slots = 1
        self.in_flight = 0
        self.lane: deque[float] = deque()
        self.last_used = -1e9
        self.next_token = 0.0
        self.waked = False


class Worker:
    def __init__(self, places: int) -> None:
        self.core = Core()
        self.places = places
        self.queue: deque[tuple[HostState, float]] = deque()


@dataclass
class Outcome:
    """What came of it. Times in seconds."""

    seconds: float
    activities: int = 0
    deliveries: int = 0
    delivered: int = 0
    parked_with_dead: int = 0
    handshakes: int = 0
    #: from the call's arrival to the POST, of hosts that are well
    to_post: list[float] = field(default_factory=list)
    #: what waits or is in flight to hosts that are well: at each tenth of the time
    backlog: list[int] = field(default_factory=list)
    server_cores: float = 0.0
    redis_cores: float = 0.0
    busiest_master: float = 0.0
    worker_cores: float = 0.0
    busiest_worker: float = 0.0
    connections: int = 0

    def percentile(self, part: float) -> float:
        return percentile(self.to_post, part)

    @property
    def stable(self) -> bool:
        """Whether the backlog came down, towards the end, to what comes in two seconds: a wide fan-out makes
        a peak that goes, too little of something one that stays."""
        return min(self.backlog[-4:]) <= 2.0 * self.deliveries / self.seconds + 50


ARRIVES, ANSWERED, FREED, PLACE, WAKE = range(5)


def simulate(
    population: Population,
    plan: Sequence[tuple[float, list[int]]],
    seconds: float,
    plant: Plant,
    costs: Costs,
    seed: int,
    *,
    tls: bool = True,
    warm: float = 0.0,
) -> Outcome:
    """`plan`: as `schedule` gives it. Nothing of the first `warm` seconds is counted among times."""
    return _Run(population, plan, seconds, plant, costs, seed, tls, warm).run()


class _Run:
    def __init__(
        self,
        population: Population,
        plan: Sequence[tuple[float, list[int]]],
        seconds: float,
        plant: Plant,
        costs: Costs,
        seed: int,
        tls: bool,
        warm: float,
    ) -> None:
        settings = Settings.from_environment({})
        self._plan, self._seconds, self._costs, self._tls, self._warm = plan, seconds, costs, tls, warm
        self._draw = random.Random(f"answers {seed}")
        self._most = plant.host_concurrency
        self._servers = [Core() for _ in range(plant.servers)]
        self._masters = [Core() for _ in range(plant.masters)]
        self._workers = [Worker(settings.concurrency) for _ in range(plant.workers)]
        owner: dict[int, Worker] = {}
        names = {f"worker-{n}": worker for n, worker in enumerate(self._workers)}
        for name, owned in divided(sorted(names), plant.partitions).items():
            for partition in owned:
                owner.setdefault(partition, names[name])
        self._hosts, self._partition = [], []
        for host in population.hosts:
            partition = partition_of(host.name, plant.partitions)
            master = self._masters[partition % plant.masters]
            self._hosts.append(HostState(host.answer_s, host.manner, master, owner[partition]))
            self._partition.append(partition)
        self._outcome = Outcome(seconds)
        self._events: list[tuple[float, int, int, HostState | Worker | None]] = []
        self._serial = 0
        self._waiting = 0

    def _push(self, at: float, what: int, of: HostState | Worker | None = None) -> None:
        self._serial += 1
        heapq.heappush(self._events, (at, self._serial, what, of))

    def run(self) -> Outcome:
        outcome, plan = self._outcome, iter(self._plan)
        coming = next(plan, None)
        marks = [self._seconds * n / 10 for n in range(1, 11)]
        while coming is not None or self._events:
            if coming is not None and (not self._events or coming[0] <= self._events[0][0]):
                now = coming[0]
                self._call(*coming)
                coming = next(plan, None)
            else:
                now, _, what, of = heapq.heappop(self._events)
                if isinstance(of, HostState):
                    self._host_event(now, what, of)
                elif isinstance(of, Worker):
                    self._free_place(now, of)
            while marks and now >= marks[0]:
                outcome.backlog.append(self._waiting)
                if len(marks) == 1:
                    self._measure()
                marks.pop(0)
        if marks:  # everything ended before the time was over
            outcome.backlog += [self._waiting] * len(marks)
            self._measure()
        return outcome

    def _measure(self) -> None:
        """Cores that were used until now, on average."""
        outcome, seconds = self._outcome, self._seconds
        for name, cores in (
            ("server", self._servers),
            ("redis", self._masters),
            ("worker", [worker.core for worker in self._workers]),
        ):
            setattr(outcome, f"{name}_cores", sum(core.used for core in cores) / seconds)
        outcome.busiest_master = max(core.used for core in self._masters) / seconds
        outcome.busiest_worker = max(worker.core.used for worker in self._workers) / seconds
        outcome.connections = sum(
            max(1, h.in_flight) for h in self._hosts if h.last_used > seconds - KEEP_ALIVE_S
        )

    def _call(self, now: float, recipients: list[int]) -> None:
        costs, outcome = self._costs, self._outcome
        server = self._servers[outcome.activities % len(self._servers)]
        outcome.activities += 1
        outcome.deliveries += len(recipients)
        sent = now + server.take(now, costs.server_call + costs.server_delivery * len(recipients))
        parts: dict[int, list[HostState]] = {}
        for index in recipients:
            parts.setdefault(self._partition[index], []).append(self._hosts[index])
        for hosts in parts.values():
            ready = sent + hosts[0].master.take(now, costs.redis_call + costs.redis_accept * len(hosts))
            for host in hosts:
                if host.dead:
                    # its circuit is open: it waits in the lane, and costs nobody else anything
                    host.master.take(now, costs.redis_deliver / 2)
                    outcome.parked_with_dead += 1
                    continue
                self._waiting += host.well
                host.lane.append(now)
                self._push(ready, FREED, host)

    def _host_event(self, now: float, what: int, host: HostState) -> None:
        if what == ANSWERED:
            settled = now + LINGER + host.worker.core.take(now, self._costs.worker_delivery * (1 - BEFORE))
            settled += host.master.take(now, self._costs.redis_deliver / 2)
            self._outcome.delivered += 1
            self._waiting -= host.well
            host.slots = min(self._most, host.slots + 1)
            host.in_flight -= 1
            if host.lane:
                self._push(settled, FREED, host)
            return
        if what == WAKE:
            host.waked = False
        while host.lane and host.in_flight < host.slots:
            if host.limits:
                if host.next_token > now:
                    if not host.waked:
                        host.waked = True
                        self._push(host.next_token, WAKE, host)
                    return
                host.next_token = now + 1 / LIMIT
            host.in_flight += 1
            arrived = host.lane.popleft()
            if host.worker.places > 0:
                self._send(now, host, arrived)
            else:
                host.worker.queue.append((host, arrived))

    def _free_place(self, now: float, worker: Worker) -> None:
        worker.places += 1
        if worker.queue:
            host, arrived = worker.queue.popleft()
            self._send(now, host, arrived)

    def _send(self, now: float, host: HostState, arrived: float) -> None:
        costs, worker = self._costs, host.worker
        worker.places -= 1
        handed = now + host.master.take(now, costs.redis_deliver / 2)
        cost, connecting = costs.worker_delivery * BEFORE, 0.0
        if now - host.last_used > KEEP_ALIVE_S:
            self._outcome.handshakes += 1
            connecting = CONNECT * min(host.answer_s, ANSWER_S)
            if self._tls:
                cost += costs.worker_handshake
        host.last_used = now
        posted = handed + worker.core.take(now, cost) + connecting
        if host.well and arrived >= self._warm:
            self._outcome.to_post.append(posted - arrived)
        answered = posted + host.answer_s * jitter(self._draw)
        self._push(answered, ANSWERED, host)
        self._push(min(answered, now + SLOW), PLACE, worker)
