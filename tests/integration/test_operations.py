"""Replays and purges as operations: counted, limited, and taken up by others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from servers.queue import Queue, die, open_queue
from servers.valkey import ValkeyServer
from structlog.testing import capture_logs

from fedsvc.background import end
from fedsvc.domain.dead_letters import DeadLetterFilter
from fedsvc.domain.delivery import DeliveryId, Reason
from fedsvc.domain.operation import Operation, OperationKind, Order, Progress
from fedsvc.errors import Overloaded, QueueUnavailable, RequestIdReused
from fedsvc.queue.dead_letters import DeadLetters
from fedsvc.queue.durability import Durability
from fedsvc.queue.operations import Operations
from fedsvc.server.operation_runner import OperationRunner

REPLAY, PURGE = OperationKind.REPLAY, OperationKind.PURGE


class Crash(Exception):
    """Of the process that carries an operation out."""


class Site:
    """A queue, and what carries operations out, whose process may end at any call."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.operations = Operations(queue.link, queue.keys)
        self.told: list[tuple[Operation, int]] = []

    def runner(self, letters: DeadLetters | None = None) -> OperationRunner:
        async def ended(operation: Operation, completed: int) -> None:
            self.told.append((operation, completed))

        return OperationRunner(self.operations, letters or self.queue.dead, ended)

    async def begin(self, order: Order, request_id: str = "") -> Operation:
        bounds = await self.queue.dead.bounds()
        return (await self.operations.begin(order, "ada", bounds, request_id=request_id))[0]

    async def carried_out(self, order: Order) -> Operation:
        operation = await self.begin(order)
        await carry_out(self.runner(), operation.id)
        return await self.seen(operation.id)

    async def seen(self, id: str) -> Operation:
        found = await self.operations.get(id)
        assert found is not None
        return found


@pytest.fixture
async def site(valkey: ValkeyServer, namespace: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(OperationRunner, "BATCH", 3)
    async with open_queue(valkey.url, namespace) as queue:
        yield Site(queue)


def figures(o: Operation) -> tuple[int, int, int, bool]:
    assert o.ended_ms
    assert o.error == ""
    return o.progress.total, o.completed, o.progress.failed, o.progress.limit_reached


@pytest.mark.parametrize(("kind", "state"), [(REPLAY, "ready"), (PURGE, "purged")])
async def test_all_go_and_all_are_counted(site: Site, kind: OperationKind, state: str) -> None:
    await die(site.queue, "a", 20)
    done = await site.carried_out(Order(kind))
    assert figures(done) == (20, 20, 0, False)
    await site.queue.is_whole(**{state: 20})
    ((told, completed),) = site.told
    assert (told.id, completed) == (done.id, 20)
    assert await site.operations.open() == []


async def test_only_those_that_fit_go(site: Site) -> None:
    await die(site.queue, "a", 12, Reason.GONE)
    await die(site.queue, "b", 12, Reason.NOT_FOUND)
    done = await site.carried_out(Order(REPLAY, chosen=DeadLetterFilter(reason=Reason.GONE)))
    assert figures(done) == (12, 12, 0, False)
    done = await site.carried_out(Order(PURGE, chosen=DeadLetterFilter(host="h1.example")))
    assert figures(done) == (2, 2, 0, False)
    await site.queue.is_whole(ready=12, purged=2, dead=10)


async def test_a_dry_run_changes_nothing(site: Site) -> None:
    await die(site.queue, "a", 20)
    done = await site.carried_out(Order(PURGE, dry_run=True))
    assert figures(done) == (20, 0, 0, False)
    await site.queue.is_whole(dead=20)


@pytest.mark.parametrize(("limit", "reached"), [(1, True), (7, True), (19, True), (20, False), (21, False)])
@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_limit_is_exact_and_told_when_it_is_hit(
    site: Site, limit: int, reached: bool, dry_run: bool
) -> None:
    await die(site.queue, "a", 20)
    done = await site.carried_out(Order(REPLAY, limit=limit, dry_run=dry_run))
    total = min(limit, 20)
    assert figures(done) == (total, 0 if dry_run else total, 0, reached)
    stats = await site.queue.conserved()
    assert stats.ready == (0 if dry_run else total)


async def test_ids_that_are_no_dead_letters_are_counted_as_failed(site: Site) -> None:
    await die(site.queue, "a", 5)
    ready = await site.queue.enqueue("ready")
    letters = (await site.queue.dead.page(limit=10)).letters
    ids = (*(letter.id for letter in letters[:3]), ready.id, DeliveryId(99, 1))
    done = await site.carried_out(Order(REPLAY, ids=ids))
    assert figures(done) == (3, 3, 2, False)
    await site.queue.is_whole(dead=2, ready=4)


async def test_what_dies_after_it_was_asked_for_stays(site: Site) -> None:
    await die(site.queue, "a", 5)
    operation = await site.begin(Order(PURGE))
    await die(site.queue, "b", 4)
    letters = [d for d in (await site.queue.dead.page(limit=20)).letters if "b-" in d.activity_id]
    by_id = await site.operations.begin(
        Order(PURGE, ids=tuple(d.id for d in letters)), "ada", operation.bounds
    )
    for id in (operation.id, by_id[0].id):
        await carry_out(site.runner(), id)
    assert figures(await site.seen(operation.id)) == (5, 5, 0, False)
    assert figures(await site.seen(by_id[0].id)) == (0, 0, 4, False)
    await site.queue.is_whole(purged=5, dead=4)


class Dying(DeadLetters):
    """Its process ends before or after the nth call that moves something."""

    def __init__(self, queue: Queue, at: int, *, after: bool) -> None:
        super().__init__(queue.link, queue.keys, queue.settings)
        self.left = at
        self.after = after

    async def move(self, *args: Any, **more: Any) -> int | None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Crash
        moved = await super().move(*args, **more)
        if self.left == 0:
            raise Crash
        return moved


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("limit", [0, 11])
async def test_another_goes_on_where_one_was_killed(site: Site, after: bool, limit: int) -> None:
    await die(site.queue, "a", 20)
    operation = await site.begin(Order(REPLAY, limit=limit))
    crashes = 0
    for at in range(1, 9):
        runner = site.runner(Dying(site.queue, at, after=after))
        # A process that is killed writes nothing down; here its exception would be.
        runner._finish = _killed  # type: ignore[method-assign]
        try:
            await carry_out(runner, operation.id)
        except Crash:
            crashes += 1
        others = site.runner()
        await carry_out(others, operation.id)
        if not (await site.seen(operation.id)).ended_ms:
            await _let_go(site, operation.id)
    await carry_out(site.runner(), operation.id)
    assert crashes >= 1
    total = limit or 20
    assert figures(await site.seen(operation.id)) == (total, total, 0, bool(limit))
    stats = await site.queue.conserved()
    assert (stats.ready, stats.dead_letters) == (total, 20 - total)


async def carry_out(runner: OperationRunner, id: str) -> None:
    """If the operation can be had."""
    if taken := await runner.take(id):
        await runner.carry_out(*taken)


async def _killed(*_: Any, **__: Any) -> None:
    raise Crash


async def _let_go(site: Site, id: str) -> None:
    """The lease of whoever was killed ends."""
    await site.queue.link.call("HSET", f"{site.queue.keys.operations}:id:{id}", "until", 0)


async def test_one_at_a_time_has_it_in_hand(site: Site) -> None:
    await die(site.queue, "a", 5)
    operation = await site.begin(Order(PURGE))
    assert await site.operations.hold(operation.id, "somebody else", 60_000)
    await carry_out(site.runner(), operation.id)
    await site.queue.is_whole(dead=5)
    assert not await site.operations.end(operation.id, "a third", operation.progress, completed=3)
    await _let_go(site, operation.id)
    await carry_out(site.runner(), operation.id)
    await site.queue.is_whole(purged=5)
    await carry_out(site.runner(), operation.id)
    assert len(site.told) == 1


async def test_what_others_have_in_hand_holds_up_none_behind_it(site: Site) -> None:
    begun = [await site.begin(Order(PURGE, limit=n)) for n in range(1, OperationRunner.AT_ONCE + 3)]
    *theirs, free = sorted(operation.id for operation in begun)
    for id in theirs:
        assert await site.operations.hold(id, "somebody else", 3_600_000)
    runner = asyncio.create_task(site.runner().run())
    try:
        async with asyncio.timeout(30):
            while free in await site.operations.open():
                await asyncio.sleep(0.01)
    finally:
        await end([runner])
    assert await site.operations.open() == theirs


async def test_redis_going_away_is_no_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await die(site.queue, "a", 5)
    operation = await site.begin(Order(PURGE))
    runner = site.runner()

    async def away(*_: Any, **__: Any) -> None:
        raise QueueUnavailable("it is away")

    with monkeypatch.context() as patch:
        patch.setattr(site.queue.dead, "batch", away)
        await carry_out(runner, operation.id)
    assert not (await site.seen(operation.id)).ended_ms
    await carry_out(runner, operation.id)
    assert figures(await site.seen(operation.id)) == (5, 5, 0, False)


async def test_what_fails_for_a_reason_that_nobody_knows_ends_and_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await die(site.queue, "a", 5)
    operation = await site.begin(Order(PURGE))

    async def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(site.queue.dead, "batch", broken)
    await carry_out(site.runner(), operation.id)
    seen = await site.seen(operation.id)
    assert seen.ended_ms
    assert seen.error == "it failed; see the log"
    assert await site.operations.open() == []


async def test_one_that_this_version_cannot_read_is_left_to_another_and_hides_none(site: Site) -> None:
    await die(site.queue, "a", 2)
    later, other = await site.begin(Order(REPLAY)), await site.begin(Order(PURGE))
    slot = f"{site.queue.keys.operations}:id:{later.id}"
    await site.queue.link.call("HSET", slot, "order", b'{"kind": "a newer one"}')
    with capture_logs() as logs:
        for _ in range(2):
            await carry_out(site.runner(), later.id)
    assert await site.queue.link.call("HGET", slot, "owner") is None, "whoever can read it may have it"
    assert await site.operations.get(later.id) is None
    assert [o.id for o in await site.operations.list(after=None, limit=10)] == [other.id]
    assert [line["event"] for line in logs] == ["operation_unreadable"]


async def test_a_request_id_names_one_operation(site: Site) -> None:
    first = await site.begin(Order(PURGE, limit=3), "r1")
    assert await site.begin(Order(PURGE, limit=3), "r1") == first
    with pytest.raises(RequestIdReused):
        await site.begin(Order(PURGE, limit=4), "r1")
    assert (await site.begin(Order(PURGE, limit=3), "r2")).id != first.id
    assert len(await site.operations.open()) == 2


async def test_only_the_first_call_of_a_name_is_told_that_it_began_something(site: Site) -> None:
    bounds = await site.queue.dead.bounds()
    order = Order(PURGE, limit=3)
    first, new = await site.operations.begin(order, "ada", bounds, request_id="r1")
    assert new
    assert await site.operations.hold(first.id, "somebody", 60_000)
    assert await site.operations.end(first.id, "somebody", Progress(total=3), completed=2, error="broken")
    again, new = await site.operations.begin(order, "ada", [*bounds[:-1], 77], request_id="r1")
    assert not new
    assert (again.bounds, again.completed, again.error) == (first.bounds, 2, "broken"), "as it is now"
    another, new = await site.operations.begin(order, "eve", bounds, request_id="r1")
    assert (new, another.principal, another.id != first.id) == (True, "eve", True)
    unnamed = [await site.operations.begin(order, "ada", bounds) for _ in range(2)]
    assert [new for _, new in unnamed] == [True, True]


async def test_what_operations_write_down_is_safe_before_it_counts(site: Site) -> None:
    begun = await site.begin(Order(PURGE))
    site.queue.link.durability = Durability(("WAIT", 1, 1), 1)  # there is no replica
    with pytest.raises(QueueUnavailable, match="not safe"):
        await site.begin(Order(PURGE))
    with pytest.raises(QueueUnavailable, match="not safe"):
        await site.operations.hold(begun.id, "somebody", 60_000)
    with pytest.raises(QueueUnavailable, match="not safe"):
        await site.operations.end(begun.id, "somebody", begun.progress, completed=0)


async def test_one_that_there_is_not_is_none_and_nothing_to_tell(site: Site) -> None:
    with capture_logs() as logs:
        assert await site.operations.get("0" * 20) is None
    assert logs == []


async def test_no_more_go_on_than_may_and_no_more_are_remembered(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Operations, "MOST_OPEN", 2)
    monkeypatch.setattr(Operations, "REMEMBERED", 3)
    open_one = await site.begin(Order(PURGE, dry_run=True))
    ended = [await site.carried_out(Order(PURGE, dry_run=True)) for _ in range(3)]
    await site.begin(Order(PURGE))
    with pytest.raises(Overloaded):
        await site.begin(Order(PURGE))
    listed = await site.operations.list(after=None, limit=10)
    assert open_one.id in {operation.id for operation in listed}
    assert ended[0].id not in {operation.id for operation in listed}


async def test_operations_are_listed_page_by_page(site: Site) -> None:
    begun = [await site.begin(Order(PURGE, limit=n)) for n in range(1, 8)]
    newest = sorted(begun, key=lambda o: (o.created_ms, o.id), reverse=True)
    found: list[Operation] = []
    after = None
    while page := await site.operations.list(after=after, limit=3):
        found += page
        after = page[-1].created_ms, page[-1].id
    assert found == newest
