"""The log of outcomes and events as SQL has it: what watchers read who come back late."""

from __future__ import annotations

import pytest
from servers.archiving import START, System

from fedsvc.archive.archived_log import ArchivedLog
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState, Priority
from fedsvc.domain.events import EventType, HostEvent

PARTITION = 1


def outcome(number: int, partition: int = PARTITION) -> Delivery:
    return Delivery(
        DeliveryId(partition, START + number), DeliveryState.DELIVERED, "https://me.example/1", "Like", "",
        "", "", "", "", Priority.BULK, outcome=START + number,
    )  # fmt: skip


def event(number: int, partition: int = PARTITION) -> HostEvent:
    return HostEvent(EventType.HOST_DOWN, partition, START + number, "h.example", str(number))


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_it_is_read_page_by_page_without_a_gap(system: System, limit: int) -> None:
    log = ArchivedLog(system.archive.engine)
    whole = [outcome(n) if n in (1, 2, 3, 4, 8, 11, 12) else event(n) for n in range(1, 15)]
    others = [outcome(5, partition=2), event(6, partition=2)]
    await system.archive.record([e for e in (*whole, *others) if isinstance(e, Delivery)])
    await log.record([e for e in (*whole, *others) if isinstance(e, HostEvent)])
    found: list[Delivery | HostEvent] = []
    after, until = START + 1, START + 13
    while after < until:
        page, after = await log.read(PARTITION, after, until, limit)
        assert len(page) <= limit
        found += page
    assert found == whole[1:13], "what is past the first, up to the last"
