"""Replays and purges through the real server: followed, written down, and refused by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from servers.front import Front, front
from servers.queue import Queue, die, open_queue
from servers.valkey import ValkeyServer

from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.domain.operation import OperationKind, Order
from fedsvc.queue.operations import Operations
from fedsvc.server.caller import Caller
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.v1 import operations_service_pb2 as pb
from fedsvc.v1 import types_pb2

PURGE = OperationKind.PURGE
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
