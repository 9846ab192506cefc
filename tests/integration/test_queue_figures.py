"""What stats say, and that saying it costs the same however much waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from servers.queue import HOUR_MS, PARTITIONS, SECOND_MS, Queue

from fedsvc.domain.delivery import DeliveryState, Priority, Reason
from fedsvc.queue.bottleneck import Bottleneck, bottleneck
from fedsvc.queue.server_info import server_info
from fedsvc.queue.stats import DUE_WITHIN_S, RATE_WINDOWS_S


async def commands_of(queue: Queue) -> Counter[str]:
    """How often the server has run each command, also inside scripts."""
    counts: Counter[str] = Counter()
    for line in (await queue.link.call("INFO", "commandstats")).decode().splitlines():
        if line.startswith("cmdstat_"):
            name, figures = line.removeprefix("cmdstat_").split(":")
            counts[name] = int(figures.split("calls=")[1].split(",")[0])
    return counts


async def cost_of_stats(queue: Queue) -> Counter[str]:
    await queue.stats.read()  # scripts are loaded
    before = await commands_of(queue)
    await queue.stats.read()
    await queue.stats.read_retries()
    return await commands_of(queue) - before


async def test_an_empty_queue_has_nothing_but_zeros(queue: Queue) -> None:
    stats = await queue.is_whole()
    assert (stats.pending, stats.due, stats.next_due_ms, stats.dead_letters) == (0, 0, None, 0)
    assert (stats.archive_backlog, stats.archive_lag_ms, stats.consumers) == (0, 0, 0)
    assert [(r.accepted, r.attempted, r.delivered, r.failed) for r in stats.rates] == [(0, 0, 0, 0)] * len(
        RATE_WINDOWS_S
    )
    assert sum((await queue.stats.read_retries()).histogram) == 0


async def test_stats_cost_the_same_however_much_waits(queue: Queue) -> None:
    async def some_of_everything(activity: str, inboxes: int) -> None:
        await queue.fan_out(activity, range(inboxes))
        await queue.fan_out(f"{activity}-later", range(inboxes), not_before_ms=await queue.now_ms() + HOUR_MS)
        taken = await queue.admit_everywhere(inboxes)
        for number, admitted in enumerate(taken[: inboxes // 2]):
            state = (DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.RETRY)[number % 3]
            await queue.settle(admitted, state, Reason.UNAVAILABLE, wait_ms=HOUR_MS)

    await some_of_everything("few", 60)
    partition_outcomes = [await queue.outcomes.read(p, 0, 1) for p in range(PARTITIONS)]
    for partition, (_, last, count) in enumerate(partition_outcomes):
        await queue.outcomes.commit(partition, 0, last, count)
    of_few = await cost_of_stats(queue)
    await some_of_everything("many", 600)
    of_many = await cost_of_stats(queue)
    assert of_few == of_many
    # of the commands that touch the backlog, only such that do not walk it
    assert set(of_many) <= {
        "evalsha", "info", "get", "time", "hgetall", "zcard", "xlen", "zrange", "zcount", "xrevrange",
        "xrange", "xpending", "xinfo|groups", "hmget",
    }  # fmt: skip


async def test_each_priority_tells_what_waits_and_for_how_long(queue: Queue) -> None:
    await queue.enqueue("1", priority=Priority.NORMAL)
    await queue.pass_time(40 * SECOND_MS)
    await queue.enqueue("2", priority=Priority.NORMAL)
    await queue.enqueue("3", priority=Priority.BULK)
    await queue.pass_time(20 * SECOND_MS)
    by_priority = (await queue.stats.read()).priorities
    assert [by_priority[p].ready for p in Priority] == [0, 2, 1]
    assert by_priority[Priority.URGENT].oldest_age_ms == 0
    assert by_priority[Priority.NORMAL].oldest_age_ms == pytest.approx(60 * SECOND_MS, abs=5 * SECOND_MS)
    assert by_priority[Priority.BULK].oldest_age_ms == pytest.approx(20 * SECOND_MS, abs=5 * SECOND_MS)
    # what a worker has does not wait any more
    (first,) = await queue.admit(1)
    by_priority = (await queue.stats.read()).priorities
    assert (by_priority[Priority.NORMAL].ready, by_priority[Priority.NORMAL].in_flight) == (1, 1)
    assert by_priority[Priority.NORMAL].oldest_age_ms == pytest.approx(20 * SECOND_MS, abs=5 * SECOND_MS)
    assert first.record.priority is Priority.NORMAL


async def test_figures_that_come_later_than_newer_ones_take_nothing_from_the_rates(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        await queue.enqueue(f"before{number}")
    await queue.pass_time(20 * SECOND_MS)
    await queue.stats.read()
    run, answers, late = queue.link.run, list[asyncio.Future[Any]](), asyncio.Event()

    def held(*arguments: Any) -> asyncio.Future[Any]:
        answers.append(run(*arguments))

        async def later(answer: asyncio.Future[Any]) -> Any:
            await late.wait()
            return await answer

        return asyncio.create_task(later(answers[-1]))

    monkeypatch.setattr(queue.link, "run", held)
    slow = asyncio.create_task(queue.stats.read())
    await asyncio.sleep(0)
    await asyncio.wait(answers)
    monkeypatch.undo()
    for number in range(3):
        await queue.enqueue(f"after{number}")
    await queue.stats.read()
    late.set()
    await slow
    assert (await queue.stats.read()).rates[0].accepted == pytest.approx(9 / 60)


async def test_what_several_partitions_have_is_summed_up_and_the_first_that_is_due_is_told(
    queue: Queue,
) -> None:
    now = await queue.now_ms()
    there = {queue.partition_of(inbox): inbox for inbox in range(30)}
    inboxes = [there[partition] for partition in sorted(there)]
    assert len(inboxes) == PARTITIONS
    due = [now + 2 * HOUR_MS, now + HOUR_MS, *[now + 3 * HOUR_MS] * (PARTITIONS - 2)]
    for inbox, at in zip(inboxes, due, strict=True):
        await queue.enqueue(f"later{inbox}", inbox=inbox, not_before_ms=at)
        await queue.enqueue(f"now{inbox}", inbox=inbox)
    (admitted,) = await queue.admit(1, inbox=inboxes[0])
    await queue.settle(admitted, DeliveryState.RETRY, Reason.TIMEOUT, wait_ms=3 * HOUR_MS)
    stats, retries = await queue.stats.read(), await queue.stats.read_retries()
    for told in (stats, retries):
        assert (told.retry, told.scheduled, told.due) == (1, PARTITIONS, 0)
        assert told.next_due_ms == pytest.approx(now + HOUR_MS, abs=1000)
    assert (stats.ready, stats.pending) == (PARTITIONS - 1, 2 * PARTITIONS)
    assert sum(retries.histogram) == PARTITIONS + 1
    assert stats.origins == {"me.example": 2 * PARTITIONS}
    assert await queue.stats.pending_of("me.example") == 2 * PARTITIONS
    assert await queue.stats.pending_of("other.example") == 0


async def test_rates_are_of_the_last_minutes(queue: Queue) -> None:
    for number in range(12):
        await queue.enqueue(str(number))
    for number, admitted in enumerate(await queue.admit(9)):
        await queue.settle(admitted, DeliveryState.DEAD if number < 3 else DeliveryState.DELIVERED)

    async def counts() -> list[tuple[float, ...]]:
        return [
            tuple(round(r.window_s * x) for x in (r.accepted, r.attempted, r.delivered, r.failed))
            for r in (await queue.stats.read()).rates
        ]

    assert tuple(r.window_s for r in (await queue.stats.read()).rates) == RATE_WINDOWS_S
    assert await counts() == [(12, 9, 6, 3)] * 2
    await queue.pass_time(120 * SECOND_MS)
    assert await counts() == [(0, 0, 0, 0), (12, 9, 6, 3)]
    await queue.pass_time(240 * SECOND_MS)
    assert await counts() == [(0, 0, 0, 0)] * 2
    # buckets are used again after some minutes: what was in them is gone
    await queue.enqueue("new")
    assert await counts() == [(1, 0, 0, 0)] * 2


async def test_of_several_that_are_settled_together_each_is_in_the_rates_if_it_was_tried(
    queue: Queue,
) -> None:
    for number in range(6):
        await queue.enqueue(str(number))
    states = 4 * [DeliveryState.DELIVERED] + [DeliveryState.DEAD, DeliveryState.EXPIRED]
    batch = [
        replace(await queue.settlement(admitted, state), attempted=state is not DeliveryState.EXPIRED)
        for admitted, state in zip(await queue.admit(6), states, strict=True)
    ]
    await queue.consumer("a").settle(queue.partition_of(0), batch)
    rates = (await queue.stats.read()).rates[0]
    assert [round(rates.window_s * x) for x in (rates.attempted, rates.delivered, rates.failed)] == [5, 4, 1]


async def test_rates_are_right_at_every_moment_of_a_steady_flow(queue: Queue) -> None:
    seen = []
    for second in range(75):
        await queue.enqueue(str(second))
        await queue.pass_time(SECOND_MS)
        if second >= 65:  # two whole buckets: every moment of one
            seen.append((await queue.stats.read()).rates[0].accepted)
    assert seen == pytest.approx([1.0] * 10, abs=0.03)


async def test_retries_are_counted_by_type_attempt_and_reason_until_they_are_ready_again(
    queue: Queue,
) -> None:
    for number, reason in enumerate((Reason.UNAVAILABLE, Reason.UNAVAILABLE, Reason.TIMEOUT)):
        await queue.enqueue(str(number))
        (admitted,) = await queue.admit(1)
        await queue.settle(admitted, DeliveryState.RETRY, reason, wait_ms=HOUR_MS)
    assert (await queue.stats.read_retries()).by_reason == {Reason.UNAVAILABLE: 2, Reason.TIMEOUT: 1}
    await queue.pass_time(HOUR_MS + SECOND_MS)
    assert (await queue.stats.read_retries()).due == 3
    await queue.promote()
    (first, *_) = await queue.admit(3)
    await queue.settle(first, DeliveryState.RETRY, Reason.DNS_FAILED, wait_ms=HOUR_MS)
    retries = await queue.stats.read_retries()
    assert (retries.retry, retries.scheduled, retries.due) == (1, 0, 0)
    assert (retries.by_type, retries.by_attempt) == ({"Like": 1}, {2: 1})
    assert retries.by_reason == {Reason.DNS_FAILED: 1}
    await queue.is_whole(in_flight=2, retry=1)


async def test_the_histogram_tells_when_retries_are_due(queue: Queue) -> None:
    for number, wait_s in enumerate((30, 200, 600, 3000, 20_000, 80_000, 100_000, 200_000)):
        await queue.enqueue(str(number))
        (admitted,) = await queue.admit(1)
        await queue.settle(admitted, DeliveryState.RETRY, Reason.TIMEOUT, wait_ms=wait_s * SECOND_MS)
    retries = await queue.stats.read_retries()
    assert len(retries.histogram) == len(DUE_WITHIN_S) + 1
    assert list(retries.histogram) == [0, 1, 1, 1, 1, 1, 1, 2]
    assert retries.next_due_ms == pytest.approx(await queue.now_ms() + 30 * SECOND_MS, abs=5 * SECOND_MS)
    await queue.pass_time(40 * SECOND_MS)
    assert list((await queue.stats.read_retries()).histogram) == [1, 0, 1, 1, 1, 1, 1, 2]


async def test_workers_count_while_their_lease_lasts(queue: Queue) -> None:
    await queue.admit_everywhere(worker="a")
    await queue.admit_everywhere(worker="b")
    assert (await queue.stats.read()).consumers == 2
    await queue.pass_time(int(queue.settings.lease * 500))
    await queue.admit_everywhere(worker="b")
    await queue.pass_time(int(queue.settings.lease * 500) + SECOND_MS)
    assert (await queue.stats.read()).consumers == 1


@pytest.mark.parametrize(("archived", "lag_s"), [(0, 90), (1, 60), (2, 30), (3, 0)])
async def test_the_archive_lags_by_what_waits_for_it_the_longest(
    queue: Queue, archived: int, lag_s: int
) -> None:
    partition = queue.partition_of(0)
    for number in range(3):
        await finish_one(queue, str(number))
        await queue.pass_time(30 * SECOND_MS)
    if archived:
        _, last, count = await queue.outcomes.read(partition, 0, archived)
        await queue.outcomes.commit(partition, 0, last, count)
    stats = await queue.stats.read()
    assert stats.archive_backlog == 3 - archived
    assert stats.archive_lag_ms == pytest.approx(lag_s * SECOND_MS, abs=5 * SECOND_MS)


async def test_an_outcome_after_a_quiet_night_does_not_make_the_archive_late(queue: Queue) -> None:
    partition = queue.partition_of(0)
    await finish_one(queue, "evening")
    _, last, count = await queue.outcomes.read(partition, 0, 10)
    await queue.outcomes.commit(partition, 0, last, count)
    await queue.pass_time(8 * 3600 * SECOND_MS)
    await finish_one(queue, "morning")
    stats = await queue.stats.read()
    assert stats.archive_backlog == 1
    assert stats.archive_lag_ms < 5 * SECOND_MS
    assert bottleneck(stats, memory_critical=False) is Bottleneck.NONE


async def finish_one(queue: Queue, number: str) -> None:
    await queue.enqueue(number)
    (admitted,) = await queue.admit(1)
    await queue.settle(admitted, DeliveryState.DELIVERED)


async def test_the_sum_goes_over_all_partitions(queue: Queue) -> None:
    assert len({queue.partition_of(n) for n in range(40)}) == PARTITIONS
    await queue.fan_out("1", range(40))
    taken = await queue.admit_everywhere(4)
    done = taken[::2]
    for admitted in done:
        await queue.settle(admitted, DeliveryState.DELIVERED)
    await queue.is_whole(ready=40 - len(taken), in_flight=len(taken) - len(done), delivered=len(done))


async def test_redis_tells_of_itself(queue: Queue) -> None:
    info = await server_info(queue.link)
    assert info.version
    assert info.used_memory > 0
    assert info.peak_memory > 0
    assert info.master
    assert not info.aof_enabled
