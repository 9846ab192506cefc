"""Who changed what is written down, also while SQL is away, and listed page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from servers.front import Front, front
from servers.queue import Queue, open_queue
from servers.valkey import ValkeyServer, valkey_server
from sqlalchemy import func, select
from structlog.testing import capture_logs

from fedsvc.archive.audit_log import AuditLog
from fedsvc.archive.engine import create_engine
from fedsvc.archive.tables import audit_events, metadata
from fedsvc.config import Settings
from fedsvc.domain.audit import AuditEvent
from fedsvc.errors import ArchiveUnavailable, QueueUnavailable
from fedsvc.queue.audit_buffer import AuditBuffer
from fedsvc.server.audit import Audit
from fedsvc.server.caller import Caller, serve
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.v1 import key_service_pb2 as keys_pb
from fedsvc.v1 import operations_service_pb2 as pb

TOKEN = new_token()
ME = (("authorization", f"Bearer {TOKEN}"),)


@pytest.fixture
async def server(environment: dict[str, str]) -> AsyncIterator[Front]:
    tokens = {"FEDSVC_TOKENS": entry_text(Caller("ada"), TOKEN)}
    async with front(Settings.from_environment(environment | tokens)) as running:
        yield running


async def events(server: Front, count: int, **asked: Any) -> list[pb.AuditEvent]:
    """Once there are so many."""
    async with asyncio.timeout(20):
        while True:
            answer = await server.operations.ListAuditEvents(pb.ListAuditEventsRequest(**asked), metadata=ME)
            if len(answer.audit_events) >= count:
                return list(answer.audit_events)
            await asyncio.sleep(0.05)


async def test_what_operators_do_is_told_newest_first_with_who_and_what(server: Front, rsa_pem: str) -> None:
    key_id = "https://me.example/u/ada#main-key"
    o, k = server.operations, server.keys
    await o.PauseHost(pb.PauseHostRequest(host="a.example", reason="abuse"), metadata=ME)
    await o.ResumeHost(pb.ResumeHostRequest(host="a.example"), metadata=ME)
    policy = pb.HostPolicy(max_in_flight=2, rate_per_second=0.5)
    await o.UpdateHostPolicy(pb.UpdateHostPolicyRequest(host="a.example", policy=policy), metadata=ME)
    await o.ForceCleanup(pb.ForceCleanupRequest(aggressive=True), metadata=ME)
    await k.PutKey(keys_pb.PutKeyRequest(key_id=key_id, private_key_pem=rsa_pem), metadata=ME)
    await k.RotateKey(keys_pb.RotateKeyRequest(key_id=key_id, private_key_pem=rsa_pem), metadata=ME)
    await k.DeleteKey(keys_pb.DeleteKeyRequest(key_id=key_id), metadata=ME)
    found = await events(server, 7)
    assert [(e.action, e.subject) for e in reversed(found)] == [
        ("host.pause", "a.example"),
        ("host.resume", "a.example"),
        ("host.policy", "a.example"),
        ("queue.cleanup", ""),
        ("key.put", key_id),
        ("key.rotate", key_id),
        ("key.delete", key_id),
    ]
    assert {e.principal for e in found} == {"ada"}
    assert found[-1].details["reason"] == "abuse"
    assert (found[-3].details["max_in_flight"], found[-3].details["rate"]) == (2, 0.5)
    assert "PRIVATE" not in str(found)
    assert len({e.audit_event_id for e in found}) == 7
    (paused,) = await events(server, 1, action="host.pause")
    assert paused == found[-1]
    assert await events(server, 0, principal="bob") == []
    assert await events(server, 0, end_time=paused.time) == []


async def test_what_was_refused_is_not_said_to_be_done(server: Front) -> None:

    with pytest.raises(grpc.aio.AioRpcError):
        await server.operations.PauseHost(pb.PauseHostRequest(host="not a host"), metadata=ME)
    await server.operations.ResumeHost(pb.ResumeHostRequest(host="a.example"), metadata=ME)
    assert [e.action for e in await events(server, 1)] == ["host.resume"]


class Desk:
    def __init__(self, queue: Queue, engine: Any) -> None:
        self.now = 1_700_000_000.0
        self.buffer = AuditBuffer(queue.link, queue.keys)
        self.log = AuditLog(engine)
        self.engine = engine
        self.audit = Audit(self.buffer, self.log, lambda: self.now)


@pytest.fixture
async def desk(database_url: str, valkey: ValkeyServer, namespace: str) -> AsyncIterator[Desk]:
    engine = create_engine(Settings.from_environment({"DATABASE_URL": database_url}))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    async with open_queue(valkey.url, namespace) as queue:
        yield Desk(queue, engine)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)
    await engine.dispose()


async def test_pages_are_stable_while_more_is_written(desk: Desk) -> None:
    for number in range(25):
        desk.now += number % 2  # two in one instant
        await desk.audit.record("host.pause", f"h{number}.example", number=number)
    assert await desk.audit.move() == 25
    whole = await desk.log.list(limit=100)
    assert [e.time_ms for e in whole] == sorted((e.time_ms for e in whole), reverse=True)
    seen: list[AuditEvent] = []
    while page := await desk.log.list(limit=4, before=(seen[-1].time_ms, seen[-1].id) if seen else None):
        seen += page
        desk.now += 1
        await desk.audit.record("host.resume", "later.example")
        await desk.audit.move()
    assert seen == whole
    times = sorted({e.time_ms for e in whole})
    between = await desk.log.list(start_ms=times[2], end_ms=times[4], limit=100)
    assert {e.time_ms for e in between} == {times[2], times[3]}
    assert await desk.log.purge(times[1], 1) == 1
    assert await desk.log.purge(times[1], 100) == len([e for e in whole if e.time_ms < times[1]]) - 1
    assert await desk.log.purge(times[1], 100) == 0


async def test_nothing_is_lost_or_doubled_when_a_server_dies_between_sql_and_redis(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(Caller("bob"))
    await desk.audit.record("key.put", "https://me.example/u/a#k", fingerprint="f")

    async def dies(_: object) -> None:
        raise QueueUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(desk.buffer, "forget", dies)
        with pytest.raises(QueueUnavailable):
            await desk.audit.move()
    both = await asyncio.gather(desk.audit.move(), desk.audit.move())
    assert list(both) == [1, 1], "two servers at once"
    assert await desk.audit.move() == 0
    async with desk.engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(audit_events)) == 1
    (event,) = await desk.log.list(limit=10)
    assert (event.principal, event.action, dict(event.details)) == ("bob", "key.put", {"fingerprint": "f"})


async def test_an_operator_goes_on_while_sql_is_away(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_: object) -> None:
        raise ArchiveUnavailable("the database does not answer")

    monkeypatch.setattr(Audit, "EVERY", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(desk.log, "record", away)
        running = asyncio.create_task(desk.audit.run())
        for number in range(5):
            await desk.audit.record("host.pause", f"h{number}.example")
        with pytest.raises(ArchiveUnavailable):
            await desk.audit.move()
        assert not running.done()
    async with asyncio.timeout(20):
        while await desk.buffer.waiting(10):
            await asyncio.sleep(0.01)
    assert len(await desk.log.list(limit=10)) == 5
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_nobody_can_read_blocks_nothing_behind_it(desk: Desk) -> None:
    for strange in (b"no JSON", b"[]", b'["id", "no time", "bob", "host.pause", "a.example", {}]'):
        await desk.buffer._link.call("RPUSH", desk.buffer._key, strange)
    newer = b'["later", 5, "bob", "host.pause", "b.example", {}, "what a newer version tells"]'
    await desk.buffer._link.call("RPUSH", desk.buffer._key, newer)
    await desk.audit.record("host.pause", "a.example")
    with capture_logs() as logs:
        assert await desk.audit.move() == 5
    assert [e.subject for e in await desk.log.list(limit=10)] == ["a.example", "b.example"]
    assert await desk.buffer.waiting(10) == []
    assert [line["event"] for line in logs] == ["audit_event_unreadable"] * 3


async def test_what_waits_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AuditBuffer, "MOST", 2)
    for _ in range(2):
        await desk.audit.record("host.pause", "a.example")
    with pytest.raises(QueueUnavailable, match="wait for the database"):
        await desk.audit.record("host.pause", "a.example")
    assert await desk.audit.move() == 2


async def test_one_that_does_not_fit_takes_nobody_else_s_along(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AuditBuffer, "MOST", 2)
    for _ in range(2):
        await desk.audit.record("host.pause", "a.example")
    before = await desk.buffer.waiting(10)
    with pytest.raises(QueueUnavailable):
        await desk.audit.record("host.pause", "b.example")
    assert await desk.buffer.waiting(10) == before


async def test_what_operators_do_to_make_room_is_done_and_told_although_redis_is_full(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    tokens = {"FEDSVC_TOKENS": entry_text(Caller("ada"), TOKEN)}
    with valkey_server(tmp_path) as own:
        settings = Settings.from_environment(environment | tokens | {"REDIS_URL": own.url})
        async with front(settings) as server:
            with own.client() as redis:
                redis.config_set("maxmemory", 1)
            await server.operations.PauseHost(pb.PauseHostRequest(host="a.example"), metadata=ME)
            purge = pb.PurgeDeadLettersRequest(filter=pb.DeadLetterFilter())
            await server.operations.PurgeDeadLetters(purge, metadata=ME)
            found = await events(server, 3)
    assert sorted(e.action for e in found) == ["dead.purge", "dead.purge.end", "host.pause"]


async def test_who_began_an_operation_is_told_also_if_that_failed_at_first(
    server: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = AuditBuffer.add

    async def refuses(self: AuditBuffer, event: AuditEvent) -> None:
        monkeypatch.setattr(AuditBuffer, "add", add)
        raise QueueUnavailable("Redis went away")

    monkeypatch.setattr(AuditBuffer, "add", refuses)
    replay = pb.ReplayDeadLettersRequest(filter=pb.DeadLetterFilter(), request_id="again")
    with pytest.raises(grpc.aio.AioRpcError, match="Redis went away"):
        await server.operations.ReplayDeadLetters(replay, metadata=ME)
    for _ in range(2):
        await server.operations.ReplayDeadLetters(replay, metadata=ME)
    found = await events(server, 2)
    assert sorted(e.action for e in found) == ["dead.replay", "dead.replay.end"]
    assert {e.principal for e in found} == {"ada"}
