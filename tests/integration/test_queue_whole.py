"""All transitions together, in any order, with crashes between them: after every step everything in Redis
fits together, order and limits hold, and at the end nothing is left behind."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any, ClassVar

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from servers.queue import PARTITIONS, Queue
from servers.structure import Structure, check
from servers.valkey import ValkeyServer

from fedsvc.domain.delivery import DeliveryId, DeliveryState, Priority, Reason
from fedsvc.domain.relations import Relation, Rule
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.consumer import Admitted, Signal
from fedsvc.queue.hosts import HostPolicy
from fedsvc.queue.link import Link
from fedsvc.queue.producer import Terms
from fedsvc.queue.spill import Spill

S = DeliveryState
MOST = 3
LIMITS = {
    "FEDSVC_HOST_CONCURRENCY": str(MOST),
    "FEDSVC_HOST_START": "1",
    "FEDSVC_HOST_RATE": "5",
    "FEDSVC_HOST_BURST": "5",
    "FEDSVC_CIRCUIT_FAILURES": "2",
    "FEDSVC_SPILL_AFTER": "0",
    "FEDSVC_LEASE": "15",
    "FEDSVC_READY_WINDOW": "3",
}
NOTE = "https://me.example/note"
ORIGINS = ("me.example", "other.example")
RELATIONS = [
    ("Create", Relation(NOTE, NOTE)),
    ("Update", Relation(NOTE, NOTE, Rule.OLDER_UPDATES)),
    ("Delete", Relation(NOTE, NOTE, Rule.OBJECT)),
    ("Update", Relation("key", NOTE, Rule.OLDER_UPDATES)),
    ("Like", Relation("key")),
    ("Like", Relation("", "state", Rule.SAME_KEY)),
    ("Like", Relation("both", "state", Rule.SAME_KEY)),
    ("Announce", Relation()),
]
_runs = itertools.count(1)


class WholeMachine(RuleBasedStateMachine):
    """Two workers, three hosts with small limits, all kinds of activities."""

    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = uvloop.new_event_loop()
        self.link = Link(self.url)
        self.queue = Queue(self.link, f"w{next(_runs)}", **LIMITS)
        self.spill = Spill(self.link, self.queue.keys, self.queue.settings)
        self.spill.WORTH = 1  # type: ignore[misc]
        self.canceller = Canceller(self.link, self.queue.keys, self.queue.settings)
        self.names = itertools.count(1)
        self.held: dict[str, list[Admitted]] = {"a": [], "b": []}
        self.sql: dict[tuple[int, int], Any] = {}
        #: ordering key and host -> sequences and messages in the order in which they were accepted
        self.chains: dict[tuple[str, int], list[DeliveryId]] = {}
        self.messages: dict[DeliveryId, str] = {}
        self.last_ids: list[DeliveryId] = []

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self.do(self.queue.empty())
            self.do(self.link.close())
            self.loop.close()

    # What happens

    @rule(
        what=st.sampled_from(RELATIONS),
        inbox=st.integers(0, 2),
        path=st.sampled_from(["/inbox", "/u/a"]),
        priority=st.sampled_from(Priority),
        after_s=st.sampled_from([0, 0, 0, 30]),
        expire_s=st.sampled_from([0, 0, 100]),
        origin=st.sampled_from(ORIGINS),
    )
    def enqueue(
        self, what: Any, inbox: int, path: str, priority: Priority, after_s: int, expire_s: int, origin: str
    ) -> None:
        kind, relation = what
        name, now_ms = f"n{next(self.names)}", self.do(self.queue.now_ms())
        queued = self.do(
            self.queue.enqueue(
                name, kind=kind, inbox=inbox, path=path, priority=priority, relation=relation,
                not_before_ms=now_ms + after_s * 1000 if after_s else 0,
                expire_ms=now_ms + expire_s * 1000 if expire_s else 0, origin=origin,
            )
        )  # fmt: skip
        self.accepted(queued.id, name, relation, inbox, origin)

    @rule(
        inboxes=st.lists(
            st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=16, unique=True
        ),
        relation=st.sampled_from([Relation("key"), Relation()]),
        origin=st.sampled_from(ORIGINS),
    )
    def fan_out(self, inboxes: list[tuple[int, int]], relation: Relation, origin: str) -> None:
        name = f"n{next(self.names)}"
        places = [self.queue.place(n, f"/u/{user}") for n, user in inboxes]
        self.do(
            self.queue.producer.fan_out(
                self.queue.message(name, origin=origin), places, Terms(Priority.BULK, relation=relation)
            )
        )
        found = self.do(
            self.queue.reader.list_activity(
                f"https://me.example/{name}", after=None, limit=100, states=frozenset()
            )
        )
        assert len(found) == len(inboxes)
        for delivery in sorted(found, key=lambda d: d.id.sequence):
            self.accepted(delivery.id, name, relation, int(delivery.host[1]), origin)

    @rule(inbox=st.integers(0, 2))
    def like_and_undo(self, inbox: int) -> None:
        like = f"n{next(self.names)}"
        target = f"https://me.example/{like}"
        first = self.do(self.queue.enqueue(like, inbox=inbox, relation=Relation(target)))
        self.accepted(first.id, like, Relation(target), inbox)
        undo = f"n{next(self.names)}"
        relation = Relation(target, "", Rule.UNDONE, target)
        second = self.do(self.queue.enqueue(undo, kind="Undo", inbox=inbox, relation=relation))
        self.accepted(second.id, undo, relation, inbox)

    def accepted(
        self, id: DeliveryId, name: str, relation: Relation, inbox: int, origin: str = ORIGINS[0]
    ) -> None:
        self.messages[id] = name
        self.last_ids = [*self.last_ids[-20:], id]
        if relation.ordering_key:
            self.chains.setdefault((origin + relation.ordering_key, inbox), []).append(id)

    @rule(worker=st.sampled_from("ab"), limit=st.integers(1, 10))
    def admit(self, worker: str, limit: int) -> None:
        self.held[worker] += self.do(self.queue.admit_everywhere(limit, worker))

    @precondition(lambda self: self.held["a"] or self.held["b"])
    @rule(data=st.data(), how=st.sampled_from(["took", "took", "failed", "failed", "slow", "dead", "ours"]))
    def settle(self, data: st.DataObject, how: str) -> None:
        worker = data.draw(st.sampled_from([w for w, held in self.held.items() if held]))
        admitted = data.draw(st.sampled_from(self.held[worker]))
        self.held[worker].remove(admitted)
        self.end(worker, admitted, how)

    def end(self, worker: str, admitted: Admitted, how: str) -> None:
        state, signal, pause = {
            "took": (S.DELIVERED, Signal.ANSWERED | Signal.TOOK, 0),
            "failed": (S.RETRY, Signal.FAILED, 0),
            "slow": (S.RETRY, Signal.ANSWERED | Signal.SLOWED, 20_000),
            "dead": (S.DEAD, Signal.ANSWERED, 0),
            "ours": (S.RETRY, Signal(0), 0),
        }[how]
        self.do(
            self.queue.settle(
                admitted, state, Reason.OK, wait_ms=30_000, worker=worker, signal=signal, pause_ms=pause
            )
        )

    @rule(worker=st.sampled_from("ab"))
    def crash(self, worker: str) -> None:
        self.held[worker].clear()

    @rule(worker=st.sampled_from("ab"))
    def recover(self, worker: str) -> None:
        self.held[worker] = [
            admitted
            for partition in range(PARTITIONS)
            for admitted in self.do(self.queue.consumer(worker).recover(partition, 100))
        ]

    @rule(worker=st.sampled_from("ab"))
    def leave(self, worker: str) -> None:
        for partition in range(PARTITIONS):
            self.do(self.queue.consumer(worker).leave(partition))
        self.held[worker].clear()

    @rule(worker=st.sampled_from("ab"))
    def reclaim(self, worker: str) -> None:
        self.held[worker] += self.do(self.queue.reclaim(worker))

    @rule(ms=st.sampled_from([1000, 16_000, 31_000, 120_000]), watched=st.booleans())
    def pass_time(self, ms: int, watched: bool) -> None:
        self.do(self.queue.pass_time(ms, watched=watched))

    @rule()
    def promote(self) -> None:
        self.do(self.queue.promote())

    @precondition(lambda self: self.last_ids)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.do(self.canceller.cancel([data.draw(st.sampled_from(self.last_ids))]))

    @rule(
        inbox=st.integers(0, 2),
        whole=st.booleans(),
        origins=st.sampled_from([None, *(frozenset({origin}) for origin in ORIGINS)]),
    )
    def cancel_many(self, inbox: int, whole: bool, origins: frozenset[str] | None) -> None:
        if whole:
            self.do(self.canceller.cancel_host(f"h{inbox}.example", origins=origins))
        else:
            self.do(self.canceller.cancel_ordered("key", origins=origins))

    @rule(inbox=st.integers(0, 2), what=st.sampled_from(["pause", "resume", "seen", "policy", "audit"]))
    def steer(self, inbox: int, what: str) -> None:
        host = f"h{inbox}.example"
        match what:
            case "pause":
                self.do(self.queue.hosts.pause(host, duration_ms=60_000))
            case "resume":
                self.do(self.queue.hosts.resume(host))
            case "seen":
                self.do(self.queue.hosts.seen(host))
            case "policy":
                self.do(self.queue.hosts.set_policy(host, HostPolicy(2, 3.0, 3.0)))
            case _:
                audited = self.do(self.queue.hosts.audit(self.queue.partition_of(inbox)))
                assert (audited.wrong, audited.backlog_off) == (0, 0)

    @rule(commit=st.booleans())
    def spill_some(self, commit: bool) -> None:
        for partition in range(PARTITIONS):
            batch = self.do(self.spill.next_batch(partition))
            if batch is not None:
                self.sql[partition, batch.number] = batch
                if commit:
                    self.do(self.spill.commit(batch))

    @rule()
    def bring_back(self) -> None:
        for partition in range(PARTITIONS):
            for number in self.do(self.spill.due(partition, 5)):
                batch = self.sql[partition, number]
                self.do(self.spill.restore(partition, number, batch.deliveries, batch.messages))

    @rule(data=st.data())
    def lose_some(self, data: st.DataObject) -> None:
        """SQL has a batch no more; some have ended, as the archive says, and the others went there again."""
        for host in range(3):  # all that can go there does
            self.do(self.queue.hosts.pause(f"h{host}.example"))
        self.admit("a", 10)
        self.spill_some(commit=True)

        async def waiting(partition: int, number: int) -> list[tuple[int, int]]:
            return [each async for some in self.spill.lost(partition, [number]) for each in some]

        for partition in range(PARTITIONS):
            away = sorted(self.do(self.spill.away(partition)))
            if not away:
                continue
            number = data.draw(st.sampled_from(away))
            batch, found = self.sql.pop((partition, number)), self.do(waiting(partition, number))
            some = sorted(found)[: data.draw(st.integers(0, len(found)))]
            ended = {sequence: DeliveryState.DELIVERED for sequence, _ in some}
            self.do(self.spill.give_up(partition, found, ended))
            rest = [each for each in batch.deliveries if each[0] not in ended]
            self.do(self.spill.adopt(partition, number + 1, batch.host, rest, batch.messages, {number}))
            assert number not in self.do(self.spill.away(partition))
            self.sql[partition, number + 1] = batch._replace(number=number + 1, deliveries=rest)

    @rule()
    def forget_scripts(self) -> None:
        async def forget() -> None:
            await self.link.call("SCRIPT", "FLUSH")

        self.do(forget())

    @rule()
    def archive_and_trim(self) -> None:
        for partition in range(PARTITIONS):
            position = self.do(self.queue.outcomes.position(partition))
            _, last, count = self.do(self.queue.outcomes.read(partition, position, 100))
            if count:
                self.do(self.queue.outcomes.commit(partition, position, last, count))
            self.do(self.queue.outcomes.trim(partition, 100, early=True))

    # What is always true

    @invariant()
    def everything_fits_together(self) -> None:
        found = self.do(check(self.queue))
        for structure in found.values():
            assert all(n <= MOST for n in structure.in_flight.values())
        self.order_holds(found)

    def order_holds(self, found: dict[int, Structure]) -> None:
        """What is behind others in its chain is nowhere but held back, as long as they have not ended."""
        for chain in self.chains.values():
            before: set[str] = set()
            for id in chain:
                structure = found[id.partition]
                if id.sequence not in structure.pending:
                    continue
                if before - {self.messages[id]}:
                    assert structure.places[id.sequence] == ["held"], f"{id} overtakes {before}"
                before.add(self.messages[id])

    def drain(self) -> None:
        """In the end everything is delivered: nothing is stuck anywhere."""
        for inbox in range(3):
            self.do(self.queue.hosts.resume(f"h{inbox}.example"))
        for _ in range(400):
            for worker in "ab":
                for admitted in self.held[worker]:
                    self.end(worker, admitted, "took")
                self.held[worker].clear()
            self.bring_back()
            self.do(self.queue.promote())
            self.held["a"] = self.do(self.queue.admit_everywhere(50, "a")) + self.do(self.queue.reclaim("a"))
            self.recover("a")
            if not self.held["a"]:
                if not self.do(self.queue.stats.read()).pending:
                    break
                self.do(self.queue.pass_time(16_000))
        stats = self.do(self.queue.conserved())
        counts = Counter(stats.counters)
        assert stats.pending == 0, counts
        self.do(check(self.queue))


@pytest.mark.timeout(115)
def test_whatever_happens_everything_fits_together_and_nothing_is_left_behind(valkey: ValkeyServer) -> None:
    WholeMachine.url = valkey.url
    run_state_machine_as_test(
        WholeMachine,
        settings=settings(
            max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
