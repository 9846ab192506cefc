"""Replays and purges as operations: counted, limited, taken up by others, and told of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from servers.front import Front, front
from servers.queue import Queue, open_queue
from servers.valkey import ValkeyServer

from fedsvc.config import Settings
from fedsvc.domain.dead_letters import DeadLetterFilter
from fedsvc.domain.delivery import DeliveryId, DeliveryState, Reason
from fedsvc.domain.operation import Operation, OperationKind, Order
from fedsvc.errors import Overloaded, QueueUnavailable, RequestIdReused
from fedsvc.queue.dead_letters import DeadLetters
from fedsvc.queue.operations import Operations
from fedsvc.server.caller import Caller
from fedsvc.server.operation_runner import OperationRunner
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.v1 import operations_service_pb2 as pb
from fedsvc.v1 import types_pb2

REPLAY, PURGE = OperationKind.REPLAY, OperationKind.PURGE


async def die(queue: Queue, name: str, count: int, reason: Reason = Reason.GONE) -> None:
    """So many new dead letters, at six hosts."""
    for n in range(count):
        await queue.enqueue(f"{name}-{n}", inbox=n % 6)
    for admitted in await queue.admit_everywhere():
        await queue.settle(admitted, DeliveryState.DEAD, reason)


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
        await self.runner().carry_out(operation.id)
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
        await site.runner().carry_out(id)
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
            await runner.carry_out(operation.id)
        except Crash:
            crashes += 1
        others = site.runner()
        await others.carry_out(operation.id)
        if not (await site.seen(operation.id)).ended_ms:
            await _let_go(site, operation.id)
    await site.runner().carry_out(operation.id)
    assert crashes >= 1
    total = limit or 20
    assert figures(await site.seen(operation.id)) == (total, total, 0, bool(limit))
    stats = await site.queue.conserved()
    assert (stats.ready, stats.dead_letters) == (total, 20 - total)


async def _killed(*_: Any, **__: Any) -> None:
    raise Crash


async def _let_go(site: Site, id: str) -> None:
    """The lease of whoever was killed ends."""
    await site.queue.link.call("HSET", f"{site.queue.keys.operations}:id:{id}", "until", 0)


async def test_one_at_a_time_has_it_in_hand(site: Site) -> None:
    await die(site.queue, "a", 5)
    operation = await site.begin(Order(PURGE))
    assert await site.operations.hold(operation.id, "somebody else", 60_000)
    await site.runner().carry_out(operation.id)
    await site.queue.is_whole(dead=5)
    assert not await site.operations.end(operation.id, "a third", operation.progress, completed=3)
    await _let_go(site, operation.id)
    await site.runner().carry_out(operation.id)
    await site.queue.is_whole(purged=5)
    await site.runner().carry_out(operation.id)
    assert len(site.told) == 1


async def test_redis_going_away_is_no_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await die(site.queue, "a", 5)
    operation = await site.begin(Order(PURGE))
    runner = site.runner()

    async def away(*_: Any, **__: Any) -> None:
        raise QueueUnavailable("it is away")

    with monkeypatch.context() as patch:
        patch.setattr(site.queue.dead, "batch", away)
        await runner.carry_out(operation.id)
    assert not (await site.seen(operation.id)).ended_ms
    await runner.carry_out(operation.id)
    assert figures(await site.seen(operation.id)) == (5, 5, 0, False)


async def test_what_fails_for_a_reason_that_nobody_knows_ends_and_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await die(site.queue, "a", 5)
    operation = await site.begin(Order(PURGE))

    async def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(site.queue.dead, "batch", broken)
    await site.runner().carry_out(operation.id)
    seen = await site.seen(operation.id)
    assert seen.ended_ms
    assert seen.error == "it failed; see the log"
    assert await site.operations.open() == []


async def test_a_request_id_names_one_operation(site: Site) -> None:
    first = await site.begin(Order(PURGE, limit=3), "r1")
    assert await site.begin(Order(PURGE, limit=3), "r1") == first
    with pytest.raises(RequestIdReused):
        await site.begin(Order(PURGE, limit=4), "r1")
    assert (await site.begin(Order(PURGE, limit=3), "r2")).id != first.id
    assert len(await site.operations.open()) == 2


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


# Over gRPC

TOKENS = {"all": new_token(), "one": new_token()}


@pytest.fixture
async def server(environment: dict[str, str]) -> AsyncIterator[Front]:
    entries = (
        entry_text(Caller("all"), TOKENS["all"]),
        entry_text(Caller("one", origins=frozenset({"me.example"})), TOKENS["one"]),
    )
    more = {"FEDSVC_PARTITIONS": "4", "FEDSVC_TOKENS": " ".join(entries)}
    async with front(Settings.from_environment(environment | more)) as running:
        yield running


@pytest.fixture
async def queue(valkey: ValkeyServer, namespace: str, server: Front) -> AsyncIterator[Queue]:
    async with open_queue(valkey.url, namespace) as opened:
        yield opened


async def call(server: Front, method: str, who: str = "all", **fields: Any) -> Any:
    request = getattr(pb, f"{method}Request")(**fields)
    metadata = (("authorization", f"Bearer {TOKENS[who]}"),)
    return await getattr(server.operations, method)(request, metadata=metadata, timeout=20)


async def ended(server: Front, operation: pb.Operation) -> pb.Operation:
    async with asyncio.timeout(20):
        while not operation.done:
            answer = await call(server, "GetOperation", operation_id=operation.operation_id)
            operation = answer.operation
    return operation


async def test_a_replay_is_asked_for_followed_and_written_down(server: Front, queue: Queue) -> None:
    await die(queue, "a", 9)
    chosen = pb.DeadLetterFilter(host="H1.example", reason=types_pb2.REASON_GONE)
    answer = await call(server, "ReplayDeadLetters", filter=chosen, limit=1, request_id="night")
    assert (answer.operation.kind, answer.operation.principal) == ("replay", "all")
    done = await ended(server, answer.operation)
    assert (done.total, done.completed, done.limit_reached, done.error) == (1, 1, True, "")
    assert done.filter == pb.DeadLetterFilter(host="h1.example", reason=types_pb2.REASON_GONE)
    again = await call(server, "ReplayDeadLetters", filter=chosen, limit=1, request_id="night")
    assert again.operation == done
    assert list((await call(server, "ListOperations")).operations) == [done]
    async with asyncio.timeout(20):
        events: list[pb.AuditEvent] = []
        while len(events) < 2:
            events = list((await call(server, "ListAuditEvents")).audit_events)
    assert [(e.principal, e.action, e.subject) for e in events] == [
        ("all", "dead.replay.end", done.operation_id),
        ("all", "dead.replay", done.operation_id),
    ]
    assert dict(events[0].details) == {"total": 1, "completed": 1, "dry_run": False}
    assert MessageToDict(events[1].details)["filter"] == {"host": "h1.example", "reason": "GONE"}


async def test_a_purge_by_ids(server: Front, queue: Queue) -> None:
    await die(queue, "a", 4)
    listed = (await call(server, "ListDeadLetters")).dead_letters
    ids = [listed[0].delivery_id, listed[0].delivery_id, listed[1].delivery_id]
    done = await ended(server, (await call(server, "PurgeDeadLetters", delivery_ids=ids)).operation)
    assert (done.total, done.completed, done.failed, done.delivery_ids_count) == (2, 2, 0, 2)
    left = {letter.delivery_id for letter in (await call(server, "ListDeadLetters")).dead_letters}
    assert left == {letter.delivery_id for letter in listed[2:]}


async def test_a_server_that_comes_back_carries_on(server: Front, queue: Queue) -> None:
    """It looks for what others have left also when nobody asks."""
    await die(queue, "a", 4)
    operations = Operations(queue.link, queue.keys)
    begun, _ = await operations.begin(Order(PURGE), "ada", await queue.dead.bounds())
    shown = await call(server, "GetOperation", operation_id=begun.id)
    assert (await ended(server, shown.operation)).completed == 4


async def test_dead_letters_are_listed_with_a_filter_page_by_page(server: Front, queue: Queue) -> None:
    await die(queue, "a", 12, Reason.GONE)
    await die(queue, "b", 6, Reason.NOT_FOUND)
    chosen = pb.DeadLetterFilter(reason=types_pb2.REASON_GONE, activity_type="Like", http_status=200)
    found, token = [], ""
    while True:
        page = await call(server, "ListDeadLetters", filter=chosen, page_size=5, page_token=token)
        found += [letter.activity_id for letter in page.dead_letters]
        token = page.next_page_token
        if not token:
            break
    assert sorted(found) == sorted(f"https://me.example/a-{n}" for n in range(12))


async def test_an_instance_lists_its_own_and_steers_none(server: Front, queue: Queue) -> None:
    await die(queue, "a", 2)
    other = await queue.enqueue("theirs", origin="other.example")
    (admitted,) = await queue.admit_everywhere()
    await queue.settle(admitted, DeliveryState.DEAD, Reason.GONE)
    mine = (await call(server, "ListDeadLetters", "one")).dead_letters
    assert str(other.id) not in [letter.delivery_id for letter in mine]
    assert len(mine) == 2
    for method, fields in (
        ("ReplayDeadLetters", {"filter": {}}),
        ("PurgeDeadLetters", {"filter": {}}),
        ("ListOperations", {}),
        ("GetOperation", {"operation_id": "0" * 20}),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(server, method, "one", **fields)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("method", "fields", "said"),
    [
        ("ReplayDeadLetters", {}, "filter: is required unless delivery_ids are given"),
        ("ReplayDeadLetters", {"delivery_ids": ["1-1"], "filter": {}}, "filter: cannot be given with"),
        ("ReplayDeadLetters", {"delivery_ids": ["1-1", "x"]}, r"delivery_ids\[1\]: not a delivery id"),
        ("PurgeDeadLetters", {"delivery_ids": ["1-1"] * 1001}, "delivery_ids: has 1001; 1000 are allowed"),
        ("PurgeDeadLetters", {"filter": {}, "limit": -1}, "limit: is negative or too large"),
        ("PurgeDeadLetters", {"filter": {"reason": 999}}, "filter.reason: 999 is not a reason"),
        ("PurgeDeadLetters", {"filter": {"host": "a b"}}, "filter.host: "),
        ("PurgeDeadLetters", {"filter": {"activity_type": "\n"}}, "filter.activity_type: has control"),
        ("ListDeadLetters", {"filter": {"http_status": 42}}, "filter.http_status: 42 is not a status"),
        ("ListDeadLetters", {"filter": {"actor": "x" * 2049}}, "filter.actor: has 2049 characters"),
        (
            "ListDeadLetters",
            {"filter": {"start_time": {"seconds": 9}, "end_time": {"seconds": 9}}},
            "filter.end_time: is not after start_time",
        ),
        ("ListDeadLetters", {"filter": {"start_time": {"seconds": -1}}}, "filter.start_time: is not a time"),
        ("ListDeadLetters", {"page_token": "x"}, "page_token: is not one"),
        ("GetOperation", {"operation_id": "x"}, "operation_id: is not an operation's id"),
        ("GetOperation", {"operation_id": "0" * 20}, "there is no operation 0000"),
        ("ListOperations", {"page_size": -1}, "page_size: is negative"),
        ("ReplayDeadLetters", {"filter": {}, "request_id": "x" * 129}, "request_id: has 129 characters"),
    ],
)
async def test_what_is_asked_for_wrongly_is_refused_by_name(
    server: Front, method: str, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=said):
        await call(server, method, **fields)
