"""What commands print, tables and text for people, JSON for programs; and how they take a time."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
#: up to which floats hold every whole number
_EXACT: Final = 2**53
#: columns of what is no terminal: nothing that we print is as wide
_ENDLESS: Final = 100_000
#: blanks between columns where there is no room for lines
_GAP: Final = 2
#: characters of a column that is not whole, before whole ones are folded
_FOLDED: Final = 8


def plain(value: Any) -> Any:
    """As JSON can say it: times in ISO 8601, durations in seconds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in whole_numbers(value).items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value


def whole_numbers(value: Mapping[Any, Any]) -> dict[Any, Any]:
    """By key, with 12 instead of 12.0: on the wire, numbers of what has no schema are all floats."""

    def whole(item: Any) -> Any:
        if isinstance(item, float) and item.is_integer() and abs(item) < _EXACT:
            return int(item)
        if isinstance(item, Mapping):
            return whole_numbers(item)
        return [whole(each) for each in item] if isinstance(item, (list, tuple)) else item

    return {key: whole(item) for key, item in value.items()}


def check_askable(yes: bool) -> None:
    """Before anything is done: somebody is there to be asked, unless it is said beforehand (--yes). Raises
    UsageError."""
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("give --yes: nobody can be asked here")


def emit(value: Any, as_json: bool, text: str) -> None:
    """`value` as JSON, or `text`."""
    click.echo(json.dumps(plain(value), indent=2) if as_json else text)


def age(value: timedelta) -> str:
    """Such as 3.2 s, 5 min, 2 h."""
    seconds = value.total_seconds()
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds / 86_400:.1f}".removesuffix(".0") + " d"


def counted(number: int, one: str, many: str = "") -> str:
    """Such as 1 inbox, 2,000 inboxes."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def memory_size(size: int) -> str:
    """Of `size` bytes: such as 12.0 MiB, 3.4 KiB or 120 B."""
    for least, unit in ((1_048_576, "MiB"), (1024, "KiB")):
        if size >= least:
            return f"{size / least:,.1f} {unit}"
    return f"{size} B"


def moment(value: datetime | None) -> str:
    """In UTC, and it says so."""
    return f"{_utc(value):%Y-%m-%d %H:%M:%SZ}" if value is not None else "-"


def _short(value: datetime) -> str:
    """A moment without what is known: this year, and the second that nobody asks for."""
    value = _utc(value)
    this_year = value.year == datetime.now(UTC).year
    return f"{value:%m-%d %H:%MZ}" if this_year else f"{value:%Y-%m-%d %H:%MZ}"


def _utc(value: datetime) -> datetime:
    return value.astimezone(UTC) if value.tzinfo else value


@dataclasses.dataclass(frozen=True)
class Column:
    """Of a table. Nothing in it is ever cut off: where it does not fit on a line it goes on on the next."""

    name: str
    #: kept on one line as long as the terminal has room for it at all, since people copy it
    whole: bool = True
    #: 0: always shown; of the others the highest is the first to be left out where there is little room
    spare: int = 0
    #: characters that it gets at least, if it is not whole
    least: int = 20


def show_table(columns: Sequence[Column], rows: Iterable[Sequence[Any]], *, none: str) -> None:
    """Print what is in a list: text, numbers, times (UTC) and None; or `none` if there is nothing.

    A terminal that is too narrow for all of it gets short times and no lines, and then fewer columns, which
    are named. What reads from a pipe or a file gets everything, however wide it is.
    """
    kept = [list(row) for row in rows]
    out = console()
    if not kept:
        out.print(none)
        return
    cells = [[_cell(value, moment) for value in row] for row in kept]
    widths = _widths(columns, cells)
    if sum(widths) + 3 * len(columns) + 1 <= out.width:
        _print(out, columns, kept, cells, widths, lined=True)
        return
    cells = [[_cell(value, _short) for value in row] for row in kept]
    chosen, widths = _fitted(columns, _widths(columns, cells), out.width)
    _print(
        out,
        [columns[i] for i in chosen],
        [[row[i] for i in chosen] for row in kept],
        [[row[i] for i in chosen] for row in cells],
        widths,
        lined=False,
    )
    if left_out := [column.name for i, column in enumerate(columns) if i not in chosen]:
        out.print(f"No room for: {', '.join(left_out)} (--json has all).")


def _cell(value: Any, time: Callable[[datetime], str]) -> str:
    if isinstance(value, datetime):
        return time(value)
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None or value == "" else str(value)


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[int]:
    """Of columns that have all on one line."""
    from rich.cells import cell_len

    return [
        max(cell_len(line) for text in (column.name, *(row[i] for row in cells)) for line in text.split("\n"))
        for i, column in enumerate(columns)
    ]


def _fitted(columns: Sequence[Column], widths: Sequence[int], room: int) -> tuple[list[int], list[int]]:
    """Which columns are shown, and how wide, within `room`."""
    least = [w if column.whole else min(w, column.least) for column, w in zip(columns, widths, strict=True)]
    chosen = [i for i, column in enumerate(columns) if not column.spare]

    def left(shown: list[int]) -> int:
        return room - sum(least[i] for i in shown) - _GAP * (len(shown) - 1)

    for spare in sorted((i for i in range(len(columns)) if i not in chosen), key=lambda i: columns[i].spare):
        if left(more := sorted([*chosen, spare])) >= 0:
            chosen = more
    while left(chosen) < 0 and any(least[i] > 1 for i in chosen):
        foldable = [i for i in chosen if not columns[i].whole and least[i] > _FOLDED]
        least[max(foldable or chosen, key=lambda i: least[i])] -= 1
    for i in chosen:
        least[i] += min(widths[i] - least[i], max(left(chosen), 0))
    return chosen, [least[i] for i in chosen]


def _print(
    out: Console,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Any]],
    cells: Sequence[Sequence[str]],
    widths: Sequence[int],
    *,
    lined: bool,
) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.HEAVY_HEAD) if lined else Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    for i, (column, width) in enumerate(zip(columns, widths, strict=True)):
        number = all(isinstance(row[i], (int, type(None))) for row in rows)
        table.add_column(column.name, width=width, overflow="fold", justify="right" if number else "left")
    for row in cells:
        table.add_row(*row)
    out.print(table)


def show(text: RenderableType) -> None:
    """Print what rich renders."""
    console().print(text)


def console() -> Console:
    """Standard output, as wide as it takes if it is no terminal. What others wrote is no markup here:
    [fe80::1] is a host, not a style."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _ENDLESS
    return Console(width=width, markup=False, emoji=False, highlight=sys.stdout.isatty())


class Number(click.FloatRange):
    """A number as click's, within its range; and neither infinite nor none at all, which are in no range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no number to count with", param, ctx)
        return number


#: of an option that takes a Moment
TIME_HELP: Final = "a time (UTC if it names no zone), or an age such as 8h."


class Moment(click.ParamType[datetime]):
    """A time in ISO 8601 (UTC if it says no zone), or how long ago: 90s, 15m, 8h, 2d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value)
        number, unit = text[:-1], _UNITS.get(text[-1:])
        try:
            if unit and number.isdecimal():
                return datetime.now(UTC) - timedelta(seconds=int(number) * unit)
            found = datetime.fromisoformat(text)
        except (ValueError, OverflowError):
            self.fail(f"{text!r} is neither a time in ISO 8601 nor an age such as 8h", param, ctx)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
