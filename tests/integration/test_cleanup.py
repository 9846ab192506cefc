"""What an operator's cleanup forgets, and what it never does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from servers.queue import HOUR_MS, Queue

from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.queue.cleanup import Cleanup
from fedsvc.queue.consumer import Signal
from fedsvc.queue.link import Link

DAY_MS = 24 * HOUR_MS


@pytest.fixture
def cleanup(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Cleanup:
    monkeypatch.setattr(Cleanup, "BATCH", 2)
    return Cleanup(queue.link, queue.outcomes, queue.hosts, queue.settings)


async def end(queue: Queue, name: str, state: DeliveryState, count: int) -> None:
    """So many deliveries to host 0 end so."""
    for number in range(count):
        await queue.enqueue(f"{name}{number}")
    for admitted in await queue.admit(100):
        await queue.settle(admitted, state, Reason.GONE, signal=Signal.ANSWERED)


async def archive(queue: Queue) -> None:
    """SQL has all that has ended."""
    partition = queue.partition_of(0)
    after = await queue.outcomes.position(partition)
    _, last, count = await queue.outcomes.read(partition, after, 1000)
    await queue.outcomes.commit(partition, after, last, count)


async def test_only_an_aggressive_one_forgets_what_was_archived_a_moment_ago(
    queue: Queue, cleanup: Cleanup
) -> None:
    await end(queue, "old", DeliveryState.DELIVERED, 5)
    await archive(queue)
    await end(queue, "new", DeliveryState.DELIVERED, 3)
    assert (await cleanup.run())[0] == {"outcomes": 0, "dead_letters": 0, "hosts": 0}
    freed, _ = await cleanup.run(aggressive=True)
    assert freed == {"outcomes": 5, "dead_letters": 0, "hosts": 0}, "in however many steps"
    assert (await cleanup.run(aggressive=True))[0]["outcomes"] == 0, "the archive has not the others yet"
    await archive(queue)
    assert (await cleanup.run(aggressive=True))[0]["outcomes"] == 3


async def test_where_nothing_is_forgotten_nothing_is_freed(
    queue: Queue, cleanup: Cleanup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Redis's memory does meanwhile, of which buffers of connections are a part."""
    sizes = iter((2_000_000, 1_000_000))

    async def shrinking(link: Link) -> Any:
        return SimpleNamespace(used_memory=next(sizes))

    monkeypatch.setattr("fedsvc.queue.cleanup.server_info", shrinking)
    assert (await cleanup.run(aggressive=True))[1] == 0


async def test_what_has_had_its_time_goes_and_what_is_pending_stays(queue: Queue, cleanup: Cleanup) -> None:
    await end(queue, "dead", DeliveryState.DEAD, 5)
    later = await queue.enqueue("later", inbox=1, not_before_ms=await queue.now_ms() + 100 * DAY_MS)
    await archive(queue)
    await queue.pass_time(queue.settings.dead_letter_retention * 1000 + DAY_MS)
    freed, _ = await cleanup.run()
    assert freed == {"outcomes": 5, "dead_letters": 5, "hosts": 1}
    assert (await queue.get(later.id)).state is DeliveryState.SCHEDULED
    stats = await queue.conserved()
    assert (stats.counter("purged"), stats.pending) == (5, 1)
