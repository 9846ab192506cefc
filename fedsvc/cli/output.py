"""What commands print, tables and text for people, JSON for programs; and how they take a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def plain(value: Any) -> Any:
    """As JSON can say it: times in ISO 8601, durations in seconds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value


def emit(value: Any, as_json: bool, text: str) -> None:
    """`value` as JSON, or `text`."""
    click.echo(json.dumps(plain(value), indent=2) if as_json else text)


def age(value: timedelta) -> str:
    """Such as 3.2 s, 5 min, 2 h."""
    seconds = value.total_seconds()
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def moment(value: datetime | None) -> str:
    return value.strftime("%Y-%m-%d %H:%M:%S") if value is not None else "-"


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
