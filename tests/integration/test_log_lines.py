"""What changes is told in the log: once, and at a level that an operator can live with."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from fedsvc_client import AsyncFedsvcClient
from prometheus_client import REGISTRY
from servers.front import front
from servers.migrated import prepare
from servers.queue import PARTITIONS, Queue, open_queue
from servers.valkey import ValkeyServer
from structlog.testing import capture_logs

from fedsvc.archive.archive import Archive
from fedsvc.archive.engine import create_engine
from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.errors import QueueUnavailable
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.consumer import Settlement, Signal
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.worker import tally
from fedsvc.worker.affinity import Affinity
from fedsvc.worker.archival_handler import ArchivalHandler
from fedsvc.worker.beats import Beats
from fedsvc.worker.journal import Journal
from fedsvc.worker.metrics import Metrics
from fedsvc.worker.settler import Settler

HOST = "h0.example"
DAY_MS = 86_400_000


@pytest.fixture
async def queue(valkey: ValkeyServer, namespace: str, tmp_path: Path) -> AsyncIterator[Queue]:
    database = f"sqlite:///{tmp_path / 'archive.db'}"
    async with open_queue(
        valkey.url, namespace, DATABASE_URL=database, FEDSVC_HOST_DOWN_AFTER="3600", FEDSVC_LOG_DELIVERIES="1"
    ) as opened:
        await asyncio.to_thread(prepare, opened.settings)
        yield opened


async def settled(queue: Queue, *settlements: Settlement) -> list[Any]:
    """What the settler logs of these."""
    settler = Settler(
        queue.consumer("a"), Beats("settle"), lambda _: None, woken=lambda _: None, busy=lambda: False
    )
    with capture_logs() as logs:
        for settlement in settlements:
            settler.add(settlement)
        running = asyncio.create_task(settler.run())
        async with asyncio.timeout(10):
            await settler.drained()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return [log for log in logs if not log["event"].startswith("loop_")]


@asynccontextmanager
async def archiver(queue: Queue) -> AsyncIterator[ArchivalHandler]:
    archive = Archive(create_engine(queue.settings))
    try:
        yield ArchivalHandler(
            queue.settings,
            queue.outcomes,
            archive,
            Beats("archive"),
            Affinity("a", queue.settings.partitions),
        )
    finally:
        await archive.close()


async def archived(queue: Queue) -> list[Any]:
    """What the archival handler logs of all that has happened."""
    async with archiver(queue) as handler:
        with capture_logs() as logs:
            while await handler.round():
                pass
        return logs


async def failing(queue: Queue, number: int) -> Settlement:
    await queue.enqueue(str(number))
    (admitted,) = await queue.admit(1)
    return Settlement(
        admitted, DeliveryState.RETRY, True, admitted.record, await queue.now_ms() + DAY_MS,
        signal=Signal.FAILED,
    )  # fmt: skip


async def test_a_circuit_that_opens_and_closes_is_told_once_each_time(queue: Queue) -> None:
    for number in range(4):
        assert await settled(queue, await failing(queue, number)) == []
    (told,) = await settled(queue, await failing(queue, 5))
    assert told == {"event": "circuit_opened", "log_level": "info", "host": HOST}
    await queue.enqueue("probe")
    await queue.pass_time(3_600_000)
    (probe,) = await queue.admit(1)
    outcome = await queue.get(probe.id)
    well = Settlement(
        probe, DeliveryState.DELIVERED, True, outcome=outcome, signal=Signal.ANSWERED | Signal.TOOK
    )
    (told,) = await settled(queue, well)
    assert told == {"event": "circuit_closed", "log_level": "info", "host": HOST}


async def test_a_host_that_asks_to_wait_is_told(queue: Queue) -> None:
    await queue.enqueue("1")
    (admitted,) = await queue.admit(1)
    slowed = Settlement(
        admitted, DeliveryState.RETRY, True, admitted.record, await queue.now_ms() + DAY_MS,
        signal=Signal.ANSWERED | Signal.SLOWED, pause_ms=90_000,
    )  # fmt: skip
    assert await settled(queue, slowed) == [
        {"event": "host_asked_to_wait", "log_level": "info", "host": HOST, "seconds": 90.0}
    ]


async def test_a_host_that_goes_down_and_comes_back_is_told_by_the_archiver(queue: Queue) -> None:
    for number in range(2):
        await queue.enqueue(f"bad{number}")
        (admitted,) = await queue.admit(1)
        await queue.fail(admitted, wait_ms=DAY_MS)
        await queue.pass_time(3_600_000)
    (told,) = await archived(queue)
    assert told == {"event": "host_down", "log_level": "warning", "host": HOST}
    await queue.enqueue("good")
    (admitted,) = await queue.admit(1)
    await queue.deliver(admitted)
    (told,) = await archived(queue)
    assert told == {"event": "host_up", "log_level": "info", "host": HOST}


def ended(state: DeliveryState) -> float:
    """How many Prometheus knows of."""
    tally.tell()
    families = [family for family in REGISTRY.collect() if family.name == "fedsvc_deliveries"]
    samples = [sample for family in families for sample in family.samples if sample.name.endswith("_total")]
    return sum(sample.value for sample in samples if sample.labels["state"] == state.name.lower())


async def test_what_ends_without_a_worker_is_counted_by_the_archiver(queue: Queue) -> None:
    states = (DeliveryState.DEAD, DeliveryState.EXPIRED, DeliveryState.CANCELLED, DeliveryState.DELIVERED)
    before = [ended(state) for state in states]
    await queue.enqueue("too old")
    (admitted,) = await queue.admit(1)
    settlement = await queue.settlement(admitted, DeliveryState.DEAD, Reason.MAX_AGE)
    assert settlement.outcome is not None
    Metrics().finished(settlement.outcome, 0)
    await queue.consumer("a").settle(admitted.id.partition, [settlement])
    await queue.enqueue("short", expire_ms=await queue.now_ms() + 60_000)
    taken_back = await queue.enqueue("taken back")
    await Canceller(queue.link, queue.keys, queue.settings).cancel([taken_back.id])
    await queue.pass_time(61_000)
    await queue.promote()
    await archived(queue)
    assert [ended(state) for state in states] == [before[0] + 1, before[1] + 1, before[2] + 1, before[3]]


async def test_what_ends_without_a_worker_is_told_by_the_archiver(queue: Queue) -> None:
    await queue.enqueue("old")
    expiring = await queue.enqueue("short", expire_ms=await queue.now_ms() + 60_000)
    cancelled = await queue.enqueue("taken back", request_id="r-7")
    await Canceller(queue.link, queue.keys, queue.settings).cancel([cancelled.id])
    await queue.pass_time(61_000)
    await queue.promote()
    told = await archived(queue)
    assert {(log["event"], log["log_level"], log["delivery"]) for log in told} == {
        ("expired", "info", str(expiring.id)),
        ("cancelled_delivery", "info", str(cancelled.id)),
    }
    assert all(log["host"] == HOST and log["activity"].startswith("https://me.example/") for log in told)
    (admitted,) = await queue.admit(1)
    await queue.settle(admitted, DeliveryState.DEAD, Reason.MAX_AGE)
    (dead,) = await archived(queue)
    assert (dead["event"], dead["log_level"], dead["reason"]) == ("dead_letter", "warning", "MAX_AGE")
    assert await archived(queue) == [], "once"


async def test_what_is_archived_twice_as_redis_was_away_is_told_and_counted_once(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = OutcomeLog.commit

    async def unheard(self: OutcomeLog, *archived: int) -> None:
        raise QueueUnavailable("Redis is away")

    async def unanswered(self: OutcomeLog, *archived: int) -> None:
        await commit(self, *archived)
        raise QueueUnavailable("Redis is away")

    before, told = ended(DeliveryState.CANCELLED), []
    for number in range(2):
        await queue.enqueue(f"bad{number}")
        (admitted,) = await queue.admit(1)
        await queue.fail(admitted, wait_ms=DAY_MS)
        await queue.pass_time(3_600_000)
    async with archiver(queue) as handler:
        for breaking in (unheard, unanswered):
            cancelled = await queue.enqueue(breaking.__name__)
            await Canceller(queue.link, queue.keys, queue.settings).cancel([cancelled.id])
            with monkeypatch.context() as patch, capture_logs() as logs:
                patch.setattr(OutcomeLog, "commit", breaking)
                with pytest.raises(QueueUnavailable):
                    await handler.round()
                patch.undo()
                await handler.round()
            told += [log["event"] for log in logs]
    assert told == ["host_down", "cancelled_delivery", "cancelled_delivery"]
    assert ended(DeliveryState.CANCELLED) == before + 2


async def test_what_ends_in_a_queue_that_begins_anew_is_told(queue: Queue) -> None:
    """Its numbers may be smaller than those of what was told."""
    async with archiver(queue) as handler:
        for now_ms in (0, -DAY_MS):
            for key in await queue.link.call("KEYS", f"{queue.settings.namespace}:*"):
                await queue.link.call("DEL", key)
            await queue.pass_time(now_ms)
            cancelled = await queue.enqueue("taken back")
            await Canceller(queue.link, queue.keys, queue.settings).cancel([cancelled.id])
            with capture_logs() as logs:
                await handler.round()
            assert [log["event"] for log in logs] == ["cancelled_delivery"]


def test_a_loop_that_fails_is_told_once_until_it_works_again() -> None:
    beats = Beats("settle")
    with capture_logs() as logs:
        beats.beat("settle")
        for _ in range(3):
            beats.fail("settle", "Redis is away")
        beats.beat("settle")
        beats.beat("settle")
    assert logs == [
        {"event": "loop_failing", "log_level": "warning", "loop": "settle", "problem": "Redis is away"},
        {"event": "loop_recovered", "log_level": "info", "loop": "settle"},
    ]


def test_a_journal_is_only_kept_where_somebody_asked() -> None:
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.INFO)
        assert Journal.of(Settings.from_environment({}), None) is None
        assert Journal.of(Settings.from_environment({}, log_deliveries=True), None) is not None
        root.setLevel(logging.DEBUG)
        assert Journal.of(Settings.from_environment({}), None) is not None
    finally:
        root.setLevel(level)


async def test_lines_of_a_call_say_which_it_is_and_nothing_of_it_is_left_for_the_next(
    environment: dict[str, str], rsa_pem: str
) -> None:
    settings = Settings.from_environment(environment | {"FEDSVC_PARTITIONS": str(PARTITIONS)})
    activity = {"id": "https://me.example/1", "type": "Like", "actor": "https://me.example/u/a"}
    async with front(settings) as running:
        with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
            async with AsyncFedsvcClient(running.target) as client:
                await client.pause_host("a.example", reason="works")
            request = pb.QueueActivityRequest(
                activity=json.dumps(activity | {"object": "https://o.example/1"}).encode(),
                inbox="https://a.example/inbox",
                signing_key=pb.SigningKey(key_id="https://me.example/u/a#k", private_key_pem=rsa_pem),
                request_id="r-1",
            )
            await fail_by_a_defect(running.delivery, request)
            await running.delivery.CancelDeliveries(pb.CancelDeliveriesRequest(host="a.example"))
    told = {log["event"]: log for log in logs}
    assert {k: told["audit"][k] for k in ("rpc", "caller", "action", "subject")} == {
        "rpc": "PauseHost", "caller": "anybody", "action": "host.pause", "subject": "a.example",
    }  # fmt: skip
    assert (told["rpc_failed"]["rpc"], told["rpc_failed"]["request_id"]) == ("QueueActivity", "r-1")
    assert told["cancelled"]["rpc"] == "CancelDeliveries"
    assert "request_id" not in told["cancelled"]


async def fail_by_a_defect(delivery: Any, request: pb.QueueActivityRequest) -> None:
    """A defect in a call, which is logged."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fedsvc.server.intake.Intake.place", lambda *_: 1 // 0)
        with pytest.raises(grpc.aio.AioRpcError):
            await delivery.QueueActivity(request)
