"""Numbers as the command line tells them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from fedsvc_client import (
    AuditEvent,
    Cleanup,
    Host,
    HostPolicy,
    HostState,
    MemoryCategory,
    MemoryStatus,
    Operation,
    RetryStats,
    Schedule,
    ScheduledFanOut,
)

from fedsvc.cli import dead, figures, hosts, schedules
from fedsvc.cli.output import age, counted, emit, memory_size, show


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 s"),
        (3.2, "3.2 s"),
        (60, "60 s"),
        (3600, "60 min"),
        (86_400, "24 h"),
        (5430, "1.5 h"),
        (604_800, "7 d"),
    ],
)
def test_a_whole_number_of_units_is_told_as_one(seconds: float, told: str) -> None:
    assert age(timedelta(seconds=seconds)) == told


def test_what_is_due_is_due_now_and_not_within_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    due = ((timedelta(0), 3), (timedelta(hours=1), 2), (None, 1))
    show(figures.retries(RetryStats(6, 0, 3, None, {"Like": 6}, {1: 6}, {"TIMEOUT": 6}, due)))
    told = capsys.readouterr().out
    assert "due now" in told
    assert "within 60 min" in told
    assert "within 0" not in told


def test_little_memory_is_told_in_kib(capsys: pytest.CaptureFixture[str]) -> None:
    held = (MemoryCategory("dead_letters", 3, 3482), MemoryCategory("bodies", 1, 20_971_520))
    show(figures.memory(MemoryStatus(1, 1, 1, 1.0, 0, 0, 0, "OK", "noeviction", held)))
    told = capsys.readouterr().out
    assert "3.4 KiB" in told
    assert "20.0 MiB" in told
    assert memory_size(0) == "0 B"


def test_a_title_is_one_line_above_a_narrow_table(capsys: pytest.CaptureFixture[str]) -> None:
    show(figures.freed(Cleanup((MemoryCategory("hosts", 3, 0),), 123_456_789)))
    assert capsys.readouterr().out.splitlines()[0].rstrip() == "Forgotten; Redis uses 117.7 MiB less"


def test_counts_among_the_details_of_an_event_are_whole_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    details = {"total": 12.0, "rate": 0.5, "filter": {"status": 404.0}, "ids": [1.0], "huge": 1e300}
    emit(AuditEvent("1", None, "ada", "dead.purge", "", details), True, "")
    told = capsys.readouterr().out
    assert '"total": 12,' in told
    assert '"status": 404\n' in told
    assert json.loads(told)["details"] == details
    assert "1e+300" in told


def test_a_schedule_says_what_it_does_in_the_same_words_each_time() -> None:
    there = Schedule(task="DEAD_LETTER_REPLAY", task_arguments={"reason": "GONE", "max_age_seconds": 86400.0})
    back = Schedule(task="DEAD_LETTER_REPLAY", task_arguments={"max_age_seconds": 86400.0, "reason": "GONE"})
    assert schedules._what(there) == schedules._what(back)
    assert schedules._what(back) == "dead letter replay (max_age_seconds=86400, reason=GONE)"
    assert schedules._when(Schedule(interval=timedelta(seconds=60))) == "every 60 s"


def test_one_is_no_plural() -> None:
    replay = Operation("1", "replay", "ada", None, None, 2, 2, 1, False, False, True, "", None, 0)
    assert dead._told(replay) == "2 of 2 replayed; 1 is no dead letter"
    assert dead._told(replace(replay, failed=3)) == "2 of 2 replayed; 3 are no dead letters"
    sent = ScheduledFanOut(b"{}", ("https://h.example/inbox",), "https://me.example/key")
    assert schedules._what(Schedule(fan_out=sent)) == "send to 1 inbox"
    assert counted(2000, "inbox", "inboxes") == "2,000 inboxes"
    assert counted(0, "dead letter") == "0 dead letters"


@pytest.mark.parametrize(("seconds", "told"), [(0, "-"), (0.038, "0.04 s"), (6.7, "6.70 s")])
def test_a_host_s_latency_is_told_as_finely_as_in_the_list(seconds: float, told: str) -> None:
    latency = timedelta(seconds=seconds)
    limits = HostPolicy(max_in_flight=0, rate_per_second=0.0, burst=0)
    host = Host("h.example", HostState.CLOSED, 0, 0, 0, None, None, None, latency, limits, "", None)
    assert f"latency       {told}\n" in hosts._told(host)
