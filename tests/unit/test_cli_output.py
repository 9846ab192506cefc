"""How lists are printed: at a terminal of any width, and into pipes and files."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import click
import pytest

from fedsvc.cli import audit, dead, deliveries, hosts, schedules
from fedsvc.cli.output import Column, Moment, show_table

THIS_YEAR = datetime.now(UTC).year
AT = datetime(THIS_YEAR, 11, 29, 9, 33, 12, tzinfo=UTC)
INBOX = "https://a-rather-long-name.lemmy.example/c/federation/inbox"
ID = "1015-1795444000000000"
OPERATION = "17954440000000000123"
HOST = "a-rather-long-name.social.example"
LISTS: dict[str, tuple[tuple[Column, ...], tuple[Any, ...], tuple[str, ...]]] = {
    "dead": (dead._COLUMNS, (ID, AT, "Announce", "unauthorized", 401, 9, INBOX), (ID, "unauthorized")),
    "operations": (
        dead._OPERATION_COLUMNS,
        (OPERATION, AT, "replay", "an-operator", "1,200 of 34,000", "goes on"),
        (OPERATION, "goes on"),
    ),
    "deliveries": (
        deliveries._COLUMNS,
        (INBOX, "scheduled", 3, 401, "unauthorized", AT, ID),
        (ID, "scheduled", "unauthorized"),
    ),
    "hosts": (
        hosts._COLUMNS,
        (HOST, "half_open", 1200, 4, 12, "0.12 s", AT, AT),
        (HOST, "half_open", "1,200"),
    ),
    "schedules": (
        schedules._COLUMNS,
        ("dead-letters-every-night", "0 4 * * * (Europe/Berlin)", "send to 3 inboxes", AT, "paused", None),
        ("dead-letters-every-night", "paused"),
    ),
    "audit": (audit._COLUMNS, (AT, "operator", "dead.purge", OPERATION, '{"total": 12}'), (OPERATION,)),
}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes standard output a terminal of so many columns."""

    def make(columns: int) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1")

    return make


def seen(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a person sees, without what makes them bold."""
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


@pytest.mark.parametrize("name", LISTS)
def test_into_a_pipe_everything_is_on_one_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    columns, row, _ = LISTS[name]
    show_table(columns, [row], none="Nothing.")
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if str(row[0]) in line or "29 09:33:12Z" in line]
    for value in row:
        if isinstance(value, str):
            assert value in line
        elif isinstance(value, datetime):
            assert f"{THIS_YEAR}-11-29 09:33:12Z" in line


@pytest.mark.parametrize("name", LISTS)
def test_at_80_columns_nothing_that_people_copy_is_cut(
    name: str, capsys: pytest.CaptureFixture[str], terminal: Callable[[int], None]
) -> None:
    terminal(80)
    columns, row, whole = LISTS[name]
    show_table(columns, [row], none="Nothing.")
    lines = seen(capsys)
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert all(any(value in line for line in lines) for value in whole), lines
    for column in columns:
        assert any(column.name in line for line in lines), "shown, or named as left out"


def test_a_narrow_list_folds_what_is_long_and_shortens_times(
    capsys: pytest.CaptureFixture[str], terminal: Callable[[int], None]
) -> None:
    terminal(80)
    show_table(dead._COLUMNS, [LISTS["dead"][1]], none="Nothing.")
    heading, *lines, left_out = seen(capsys)
    assert "11-29 09:33Z" in lines[0]
    assert "".join(line[heading.index("inbox") :].strip() for line in lines) == INBOX
    assert left_out.startswith("No room for: type, attempts (")


def test_even_in_20_columns_all_of_it_is_there(
    capsys: pytest.CaptureFixture[str], terminal: Callable[[int], None]
) -> None:
    terminal(20)
    show_table((Column("id"), Column("host")), [(ID, HOST)], none="Nothing.")
    lines = seen(capsys)
    assert max(map(len, lines)) <= 20
    assert "".join(line[:9].strip() for line in lines[1:]) == ID
    assert "".join(line[11:].strip() for line in lines[1:]) == HOST


def test_times_are_in_utc_and_say_so(
    capsys: pytest.CaptureFixture[str], terminal: Callable[[int], None]
) -> None:
    here = timezone(timedelta(hours=2))
    long_ago = datetime(2019, 5, 1, 1, 30, 0, tzinfo=here)
    show_table((Column("ended"),), [(long_ago,)], none="Nothing.")
    assert "2019-04-30 23:30:00Z" in capsys.readouterr().out
    terminal(20)
    show_table((Column("ended"),), [(long_ago,)], none="Nothing.")
    assert "2019-04-30 23:30Z" in capsys.readouterr().out


@pytest.mark.parametrize(("group", "command"), [(dead.dead, "list"), (dead.dead, "purge"), (None, "audit")])
def test_options_that_take_a_time_say_that_it_is_utc_without_a_zone(
    group: click.Group | None, command: str
) -> None:
    found = group.commands[command] if group else audit.audit
    for name in ("since", "until"):
        (option,) = [parameter for parameter in found.params if parameter.name == name]
        assert isinstance(option, click.Option)
        assert "UTC if it names no zone" in (option.help or "")
    assert Moment().convert("2026-11-29T09:33", None, None) == datetime(2026, 11, 29, 9, 33, tzinfo=UTC)
