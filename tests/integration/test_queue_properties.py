"""The queue against a model of it: whatever is done, every delivery is in exactly one place."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable
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
from servers.valkey import ValkeyServer

from fedsvc.domain.delivery import DeliveryId, DeliveryState, Priority, Reason
from fedsvc.queue.consumer import Admitted
from fedsvc.queue.link import Link

S = DeliveryState
_runs = itertools.count(1)
ORIGINS = ("me.example", "other.example")
PENDING = (S.READY, S.IN_FLIGHT, S.RETRY, S.SCHEDULED)


class QueueMachine(RuleBasedStateMachine):
    """Two workers, three hosts. The model knows each delivery's state, and who holds what is in flight."""

    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = uvloop.new_event_loop()
        self.link = Link(self.url)
        self.queue = Queue(self.link, f"m{next(_runs)}", FEDSVC_READY_WINDOW="1")
        self.states: dict[DeliveryId, DeliveryState] = {}
        #: what each worker was handed and has not settled, as far as it knows
        self.held: dict[str, list[Admitted]] = {"a": [], "b": []}
        #: in Redis, in flight with whom
        self.flying: dict[DeliveryId, str] = {}
        self.ever: list[Admitted] = []
        #: entry under which it was handed out last
        self.entries: dict[DeliveryId, int] = {}
        self.due: dict[DeliveryId, int] = {}
        self.now_ms = 0
        self.lease_until = {"a": 0, "b": 0}
        self.known: dict[tuple[str, int, str], DeliveryId] = {}
        self.origins: dict[DeliveryId, str] = {}

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def all(self, work: Iterable[Any]) -> list[Any]:
        """Of what only looks, at the same time."""

        async def together() -> list[Any]:
            return await asyncio.gather(*work)

        found: list[Any] = self.do(together())
        return found

    def teardown(self) -> None:
        self.do(self.queue.empty())
        self.do(self.link.close())
        self.loop.close()

    def pass_time(self, ms: int) -> None:
        self.do(self.queue.pass_time(ms))
        self.now_ms += ms

    # What happens

    @rule(
        activity=st.sampled_from("xyz"),
        inbox=st.integers(0, 2),
        priority=st.sampled_from(Priority),
        later=st.booleans(),
        origin=st.sampled_from(ORIGINS),
    )
    def enqueue(self, activity: str, inbox: int, priority: Priority, later: bool, origin: str) -> None:
        not_before = self.do(self.queue.now_ms()) + 60_000 if later else 0
        queued = self.do(
            self.queue.enqueue(
                activity, inbox=inbox, priority=priority, not_before_ms=not_before, origin=origin
            )
        )
        assert queued.duplicate is ((activity, inbox, origin) in self.known)
        if queued.duplicate:
            assert queued.id == self.known[activity, inbox, origin]
            return
        self.known[activity, inbox, origin] = queued.id
        self.origins[queued.id] = origin
        self.states[queued.id] = S.SCHEDULED if later else S.READY
        if later:
            self.due[queued.id] = self.now_ms + 60_000

    @rule(inbox=st.integers(0, 2), again=st.booleans(), origin=st.sampled_from(ORIGINS))
    def enqueue_a_new_activity(self, inbox: int, again: bool, origin: str) -> None:
        name = f"n{len(self.states)}"
        request = f"r-{name}"
        queued = self.do(self.queue.enqueue(name, inbox=inbox, request_id=request, origin=origin))
        self.states[queued.id] = S.READY
        self.origins[queued.id] = origin
        if again:
            assert self.do(self.queue.enqueue(name, inbox=inbox, request_id=request, origin=origin)) == queued

    @rule(worker=st.sampled_from("ab"), limit=st.integers(1, 4))
    def admit(self, worker: str, limit: int) -> None:
        taken = self.do(self.queue.admit_everywhere(limit, worker))
        self.lease_until[worker] = self.now_ms + int(self.queue.settings.lease * 1000)
        for admitted in taken:
            assert self.states[admitted.id] is S.READY
            self.states[admitted.id] = S.IN_FLIGHT
            self.flying[admitted.id] = worker
            self.entries[admitted.id] = admitted.entry
            self.ever.append(admitted)
            self.held[worker].append(admitted)

    @precondition(lambda self: self.held["a"] or self.held["b"])
    @rule(
        data=st.data(),
        state=st.sampled_from([S.DELIVERED, S.RETRY, S.DEAD, S.EXPIRED]),
    )
    def settle(self, data: st.DataObject, state: DeliveryState) -> None:
        worker = data.draw(st.sampled_from([w for w, held in self.held.items() if held]))
        admitted = data.draw(st.sampled_from(self.held[worker]))
        self.held[worker].remove(admitted)
        self.settle_as(worker, [(admitted, state)])

    @precondition(lambda self: self.ever)
    @rule(
        data=st.data(),
        worker=st.sampled_from("ab"),
        state=st.sampled_from([S.DELIVERED, S.RETRY, S.DEAD, S.EXPIRED]),
    )
    def settle_late(self, data: st.DataObject, worker: str, state: DeliveryState) -> None:
        """Somebody wakes up with what it was handed once."""
        self.settle_as(worker, [(data.draw(st.sampled_from(self.ever)), state)])

    @precondition(lambda self: self.ever)
    @rule(data=st.data(), worker=st.sampled_from("ab"))
    def settle_together(self, data: st.DataObject, worker: str) -> None:
        """Several in one script, some of them late or twice."""
        partition = data.draw(st.sampled_from(self.ever)).id.partition
        there = [admitted for admitted in self.ever if admitted.id.partition == partition]
        some = data.draw(st.lists(st.sampled_from(there), min_size=2, max_size=6))
        states = st.sampled_from([S.DELIVERED, S.DELIVERED, S.RETRY, S.DEAD, S.EXPIRED])
        self.settle_as(worker, [(admitted, data.draw(states)) for admitted in some])

    def settle_as(self, worker: str, ended: list[tuple[Admitted, DeliveryState]]) -> None:
        settlements = [
            self.do(
                self.queue.settlement(admitted, state, Reason.SERVER_ERROR, wait_ms=30_000, worker=worker)
            )
            for admitted, state in ended
        ]
        partition = ended[0][0].id.partition
        late = set()
        for index, (admitted, state) in enumerate(ended):
            # whoever comes first settles: also one from whom it was taken over
            if self.states[admitted.id] is S.IN_FLIGHT and self.entries[admitted.id] == admitted.entry:
                self.states[admitted.id] = state
                del self.flying[admitted.id]
                if state is S.RETRY:
                    self.due[admitted.id] = self.now_ms + 30_000
            else:
                late.add(index)
        assert self.do(self.queue.consumer(worker).settle(partition, settlements)).passed_over == late

    @rule(worker=st.sampled_from("ab"))
    def crash(self, worker: str) -> None:
        """It forgets what it held; in Redis all of it is still in flight."""
        self.held[worker].clear()

    @rule()
    def let_leases_end(self) -> None:
        self.pass_time(int(self.queue.settings.lease * 1000) + 1000)

    @rule(worker=st.sampled_from("ab"))
    def reclaim(self, worker: str) -> None:
        other = "b" if worker == "a" else "a"
        taken = self.do(self.queue.reclaim(worker))
        self.lease_until[worker] = self.now_ms + int(self.queue.settings.lease * 1000)
        expected = {id for id, holder in self.flying.items() if holder == other}
        # real time passes a little too: close to the end of a lease either is right
        if self.now_ms < self.lease_until[other] - 1000:
            expected = set()
        assert {admitted.id for admitted in taken} == expected
        for admitted in taken:
            self.flying[admitted.id] = worker
            self.held[worker].append(admitted)

    @rule(worker=st.sampled_from("ab"))
    def recover(self, worker: str) -> None:
        found = [
            admitted
            for partition in range(PARTITIONS)
            for admitted in self.do(self.queue.consumer(worker).recover(partition, 100))
        ]
        self.lease_until[worker] = self.now_ms + int(self.queue.settings.lease * 1000)
        assert {a.id for a in found} == {id for id, holder in self.flying.items() if holder == worker}

    @rule(ms=st.sampled_from([1000, 31_000, 61_000]))
    def promote_later(self, ms: int) -> None:
        self.pass_time(ms)
        promoted = self.do(self.queue.promote())
        due = [id for id, at in self.due.items() if at <= self.now_ms]
        for id in due:
            self.states[id] = S.READY
            del self.due[id]
        assert promoted == len(due)

    @rule()
    def archive_and_trim(self) -> None:
        for partition in range(PARTITIONS):
            position = self.do(self.queue.outcomes.position(partition))
            _, last, count = self.do(self.queue.outcomes.read(partition, position, 100))
            if count:
                self.do(self.queue.outcomes.commit(partition, position, last, count))
            self.do(self.queue.outcomes.trim(partition, 100))

    @rule(what=st.sampled_from(["replay", "purge"]), data=st.data(), again=st.booleans())
    def exhume(self, what: str, data: st.DataObject, again: bool) -> None:
        """Some of the dead letters; and then those again, as after a crash."""
        partition = data.draw(st.integers(0, PARTITIONS - 1))
        page = self.do(self.queue.dead.page(limit=100)).letters
        assert {letter.id for letter in page} == {id for id, s in self.states.items() if s is S.DEAD}
        letters = [letter for letter in page if letter.id.partition == partition]
        some = (
            st.lists(st.sampled_from(letters), unique_by=lambda letter: letter.id) if letters else st.just([])
        )
        chosen = data.draw(some)
        before = self.do(self.queue.dead.moved("o"))
        assert self.do(self.queue.dead.move(what, chosen, "o")) == len(chosen)
        if again:
            assert self.do(self.queue.dead.move(what, chosen, "o")) == 0
        assert self.do(self.queue.dead.moved("o")) == before + len(chosen)
        for letter in chosen:
            self.states[letter.id] = S.READY if what == "replay" else S.PURGED

    # What is always true

    @invariant()
    def the_sum_adds_up(self) -> None:
        stats = self.do(self.queue.stats.read())
        assert stats.conserved
        counts = Counter(self.states.values())
        assert (stats.ready, stats.in_flight) == (counts[S.READY], counts[S.IN_FLIGHT])
        assert (stats.retry, stats.scheduled) == (counts[S.RETRY], counts[S.SCHEDULED])
        assert stats.counter("accepted") == len(self.states)
        for state in (S.DELIVERED, S.DEAD, S.EXPIRED, S.PURGED):
            assert stats.counter(state.name.lower()) == counts[state]
        assert stats.dead_letters == counts[S.DEAD]
        assert stats.origins == Counter(
            self.origins[id] for id, state in self.states.items() if state in PENDING
        )

    @invariant()
    def every_delivery_is_where_the_model_has_it(self) -> None:
        found = self.all(self.queue.reader.get(id) for id in self.states)
        for state, shown in zip(self.states.values(), found, strict=True):
            if shown is None:
                assert state in (S.DELIVERED, S.EXPIRED, S.PURGED)  # trimmed, once archived
            else:
                assert shown.state is state

    @invariant()
    def a_body_is_kept_as_long_as_it_is_needed_and_no_longer(self) -> None:
        needed = [id for id, state in self.states.items() if state in (*PENDING, S.DEAD)]
        assert all(self.all(self.queue.reader.body(id) for id in needed))
        references = self.do(self.queue.references())
        assert sum(references) == len(needed)
        assert 0 not in references


@pytest.mark.timeout(110)
def test_the_queue_keeps_its_invariants_whatever_happens(valkey: ValkeyServer) -> None:
    QueueMachine.url = valkey.url
    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
