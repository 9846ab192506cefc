"""When schedules run: by a clock of our own, across months, leap days and changes to and from summer time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain.delivery import Priority
from fedsvc.domain.schedule import (
    FanOutTemplate,
    MissedRuns,
    Recurrence,
    Schedule,
    Task,
    definition_as_json,
    definition_from_json,
)

DAY_MS = 86_400_000


def ms(text: str) -> int:
    """Of a time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def runs(recurrence: Recurrence, start: str, count: int) -> list[str]:
    """The first so many after that time, in UTC."""
    found, at = [], ms(start)
    for _ in range(count):
        at = recurrence.next_after(at)
        found.append(datetime.fromtimestamp(at / 1000, UTC).strftime("%m-%d %H:%M"))
    return found


@pytest.mark.parametrize(
    ("cron", "zone", "start", "expected"),
    [
        ("0 3 * * *", "UTC", "2026-11-24T03:00", ["11-25 03:00", "11-26 03:00"]),
        ("0 3 * * *", "UTC", "2026-11-24T02:59", ["11-24 03:00", "11-25 03:00"]),
        ("*/20 * * * *", "UTC", "2026-12-31T23:45", ["01-01 00:00", "01-01 00:20"]),
        ("0 12 31 * *", "UTC", "2026-11-01T00:00", ["12-31 12:00", "01-31 12:00", "03-31 12:00"]),
        ("0 0 29 2 *", "UTC", "2026-11-01T00:00", ["02-29 00:00"]),
        ("0 9 * * MON", "Europe/Berlin", "2026-11-24T00:00", ["11-30 08:00", "12-07 08:00"]),
        # 2026-03-29 02:00 becomes 03:00: what has a fixed time in the hour left out runs right after it
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["03-30 00:00", "03-30 00:30"]),
        # 2026-10-25 03:00 becomes 02:00: what has a fixed time runs once, what comes hourly each hour
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["10-25 00:30", "10-26 01:30"]),
        ("0 * * * *", "Europe/Berlin", "2026-10-24T23:30", ["10-25 00:00", "10-25 01:00", "10-25 02:00"]),
        # asked in the second of the two hours: the first is over
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10", ["10-26 01:30"]),
        ("59 1-3 * * *", "Europe/Berlin", "2026-10-25T01:00", ["10-25 02:59", "10-26 00:59"]),
        ("30 23 * * *", "America/Santiago", "2026-04-05T03:00", ["04-06 03:30"]),
    ],
)
def test_cron(cron: str, zone: str, start: str, expected: list[str]) -> None:
    recurrence = Recurrence(cron, zone)
    recurrence.check()
    assert runs(recurrence, start, len(expected)) == expected


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("60 * * * *", "bad minute"),
        ("* 24 * * *", "bad hour"),
        ("* * 0 * *", "bad day-of-month"),
        ("* * * 13 *", "bad month"),
        ("* * * * 9", "bad day-of-week"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("@daily", "five fields"),
    ],
)
def test_a_cron_expression_that_is_none_says_what_is_wrong(cron: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recurrence(cron or " ").check()


def test_intervals_are_counted_from_where_they_began() -> None:
    recurrence = Recurrence(interval_ms=90_000, anchor_ms=1_000_000)
    assert recurrence.next_after(1_000_000) == 1_090_000
    assert recurrence.next_after(1_089_999) == 1_090_000
    assert recurrence.next_after(1_090_000) == 1_180_000
    assert recurrence.last_before(1_300_000, 1_090_000) == 1_270_000


@pytest.mark.parametrize(
    ("cron", "now", "first", "expected"),
    [
        ("0 3 * * *", "2026-11-24T03:00:00.500", "2026-11-24T03:00", "2026-11-24T03:00"),
        ("0 3 * * *", "2026-11-27T12:00", "2026-11-24T03:00", "2026-11-27T03:00"),
        ("* * * * *", "2027-11-24T03:00:30", "2026-11-24T03:00", "2027-11-24T03:00"),
        ("0 0 29 2 *", "2026-11-24T00:00", "2024-02-29T00:00", "2024-02-29T00:00"),
    ],
)
def test_the_latest_that_was_missed(cron: str, now: str, first: str, expected: str) -> None:
    assert Recurrence(cron).last_before(ms(now), ms(first)) == ms(expected)


CRONS = st.sampled_from(
    ["* * * * *", "*/7 * * * *", "30 2 * * *", "0 */5 * * *", "15 1 1 * *", "0 0 * * SUN", "59 23 31 12 *"]
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"])
TIMES = st.integers(ms("2024-01-01"), ms("2028-01-01"))
RECURRENCES = st.builds(Recurrence, CRONS, ZONES) | st.builds(
    Recurrence,
    interval_ms=st.integers(1, 5000).map(lambda s: s * 1000),
    anchor_ms=st.integers(0, 10**6).map(lambda s: s * 1000),
)


@given(recurrence=RECURRENCES, start=TIMES)
def test_runs_go_forward_and_none_comes_twice(recurrence: Recurrence, start: int) -> None:
    at = start
    for _ in range(10):
        following = recurrence.next_after(at)
        assert following > at
        # Nothing lies between: asked from anywhere before it, it is the next one.
        assert recurrence.next_after(at + (following - at) // 2) == following or following - at < 2
        assert recurrence.next_after(following - 1) == following
        at = following


@given(recurrence=RECURRENCES, start=TIMES, later=st.integers(0, 30 * DAY_MS))
def test_the_latest_missed_is_a_run_and_none_lies_after_it(
    recurrence: Recurrence, start: int, later: int
) -> None:
    first = recurrence.next_after(start)
    now = first + later
    last = recurrence.last_before(now, first)
    assert first <= last <= now
    assert recurrence.next_after(last) > now


@pytest.mark.parametrize("cron", ["30 2 * * *", "59 1-3 * * *", "5 * * * *", "*/20 * * * *"])
@pytest.mark.parametrize("minute", range(0, 240, 7))
def test_an_hour_that_comes_twice_repeats_no_run_and_hides_none(cron: str, minute: int) -> None:
    recurrence = Recurrence(cron, "Europe/Berlin")
    now = ms("2026-10-24T23:00") + minute * 60_000
    all_of_them = [recurrence.next_after(ms("2026-10-23T20:00"))]
    while all_of_them[-1] < ms("2026-10-26T12:00"):
        all_of_them.append(recurrence.next_after(all_of_them[-1]))
    assert recurrence.next_after(now) == min(at for at in all_of_them if at > now)
    assert recurrence.last_before(now, all_of_them[0]) == max(at for at in all_of_them if at <= now)


def test_a_definition_comes_back_as_it_was() -> None:
    template = FanOutTemplate(b'{"id":"{run_id}","at":"{time}"}', ("https://a/inbox",), "k", Priority.BULK)
    for schedule in (
        Schedule("a", Recurrence("0 3 * * *", "Europe/Berlin"), template, description="d"),
        Schedule("b", Recurrence(interval_ms=1000, anchor_ms=5), task=Task.CLEANUP, missed=MissedRuns.SKIP),
        Schedule("c", Recurrence("* * * * *"), task=Task.DEAD_LETTER_REPLAY, arguments={"host": "h"}),
    ):
        assert definition_from_json(schedule.id, definition_as_json(schedule)) == schedule


def test_a_template_is_filled_in() -> None:
    template = FanOutTemplate(b'{"id":"https://me/{run_id}","published":"{time}","x":"{other}"}', (), "k")
    assert template.filled("r-1", ms("2026-11-24T03:00:05")) == (
        b'{"id":"https://me/r-1","published":"2026-11-24T03:00:05Z","x":"{other}"}'
    )
    schedule = Schedule("weekly", Recurrence("* * * * *"))
    assert schedule.run_id(ms("2026-11-24T03:00:05")) == "weekly-20261124T030005Z"
