"""What a full Redis means to new work, and to what can be put elsewhere."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from fedsvc.config import Settings
from fedsvc.domain.delivery import Priority
from fedsvc.errors import Overloaded
from fedsvc.queue.server_info import ServerInfo
from fedsvc.server.pressure import Pressure
from fedsvc.worker.memory import MemoryWatch

SETTINGS = Settings.from_environment({"FEDSVC_MEMORY_WARNING": "0.5", "FEDSVC_MEMORY_CRITICAL": "0.75"})


def filled(share: float) -> ServerInfo:
    return ServerInfo("valkey", "8", round(1000 * share), 0, 0, 1.0, 1000, "noeviction", True, True, True)


def refused(pressure: Pressure) -> dict[Priority, int]:
    """Priorities that find no room, and after how many seconds to ask again."""
    found = {}
    for priority in Priority:
        try:
            pressure.check(priority)
        except Overloaded as error:
            found[priority] = error.retry_after_s
    return found


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.749, {}),
        (0.75, {Priority.BULK: 60}),
        (0.874, {Priority.BULK: 60}),
        (0.875, {Priority.BULK: 60, Priority.NORMAL: 15}),
        (0.949, {Priority.BULK: 60, Priority.NORMAL: 15}),
        (0.95, {Priority.BULK: 60, Priority.NORMAL: 15, Priority.URGENT: 5}),
    ],
)
def test_bulk_is_refused_first_and_what_is_urgent_last(share: float, expected: dict[Priority, int]) -> None:
    pressure = Pressure(SETTINGS)
    assert refused(pressure) == {}
    pressure.note(filled(share))
    assert refused(pressure) == expected
    pressure.note(filled(0.1))
    assert refused(pressure) == {}


def test_a_redis_without_a_limit_is_never_full() -> None:
    pressure = Pressure(SETTINGS)
    pressure.note(ServerInfo("valkey", "8", 10**12, 0, 0, 1.0, 0, "noeviction", True, True, True))
    assert refused(pressure) == {}


def test_that_memory_is_critical_is_logged_when_it_begins_and_when_it_ends() -> None:
    pressure = Pressure(SETTINGS)
    with capture_logs() as logs:
        for share in (0.74, 0.75, 0.9, 0.75, 0.74, 0.1):
            pressure.note(filled(share))
    assert [(log["event"], log["used"]) for log in logs] == [
        ("memory_critical", 0.75), ("memory_relieved", 0.74),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("share", "short", "critical"),
    [(0.499, False, False), (0.5, True, False), (0.749, True, False), (0.75, True, True)],
)
def test_what_can_be_put_elsewhere_is_from_the_first_threshold_on(
    share: float, short: bool, critical: bool
) -> None:
    memory = MemoryWatch(SETTINGS)
    assert not memory.short
    memory.note(filled(share))
    assert (memory.short, memory.critical) == (short, critical)
