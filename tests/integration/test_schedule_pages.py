"""ListSchedules: pages that are not too large, and leave none out."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from servers.front import Front, front

from fedsvc.config import Settings
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.server.services import schedules as module
from fedsvc.v1 import operations_service_pb2 as pb

IDS = [f"s{number:02}" for number in range(17)]


@pytest.fixture
async def server(environment: dict[str, str]) -> AsyncIterator[Front]:
    async with front(Settings.from_environment(environment)) as running:
        for id in IDS:
            task = pb.Schedule(
                schedule_id=id, cron="0 9 * * MON", task=pb.MAINTENANCE_TASK_CLEANUP, description="x" * 500
            )
            await running.operations.CreateSchedule(pb.CreateScheduleRequest(schedule=task), timeout=20)
        yield running


async def pages(server: Front, page_size: int = 0) -> list[list[str]]:
    """Ids, page by page."""
    found, token = [], ""
    while True:
        request = pb.ListSchedulesRequest(page_size=page_size, page_token=token)
        page = await server.operations.ListSchedules(request, timeout=20)
        found.append([schedule.schedule_id for schedule in page.schedules])
        token = page.next_page_token
        if not token:
            return found


def joined(found: list[list[str]]) -> list[str]:
    return [id for page in found for id in page]


@pytest.mark.parametrize("at_once", [1, 3, 20])
async def test_a_page_ends_where_it_gets_too_large(
    server: Front, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(module, "_SLICE", at_once)
    monkeypatch.setattr(module, "_PAGE_BYTES", 1300)
    found = await pages(server)
    assert joined(found) == IDS
    assert {len(page) for page in found[:-1]} == {2}
    monkeypatch.setattr(module, "_PAGE_BYTES", 10)
    assert await pages(server) == [[id] for id in IDS], "one is always shown"


@pytest.mark.parametrize("size", [1, 5, 16, 17, 18])
async def test_a_page_has_no_more_than_was_asked_for(
    server: Front, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(module, "_SLICE", 3)
    found = await pages(server, size)
    assert joined(found) == IDS
    assert {len(page) for page in found[:-1]} <= {size}
    assert len(found[-1]) <= size


async def test_one_that_cannot_be_read_hides_no_other(
    server: Front, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(environment["REDIS_URL"])
    prefix = Keys(environment["FEDSVC_NAMESPACE"]).schedules
    await link.call("HSET", f"{prefix}:id:{IDS[4]}", "definition", "{")
    await link.close()
    monkeypatch.setattr(module, "_SLICE", 5)
    assert joined(await pages(server, 5)) == [id for id in IDS if id != IDS[4]]
