"""Figures, times and names of the contract as people read them."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from fedsvc.v1 import key_service_pb2, operations_service_pb2, types_pb2

#: characters of a body that are shown
LONGEST_BODY: Final = 100_000


def number(value: float) -> str:
    return f"{value:,.0f}"


def rate(value: float) -> str:
    """Per second."""
    return f"{value:,.0f}/s" if value >= 10 or value == 0 else f"{value:.1f}/s"


def milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value < 1000 else span(value / 1000)


def span(seconds: float) -> str:
    """A length of time, in its two greatest units."""
    if seconds < 1:
        return f"{seconds * 1000:,.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds >= 1e10:
        return "for ever"
    left = round(seconds)
    parts = []
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size:,} {name}")
            left %= size
        elif parts:
            break
    return " ".join(parts[:2])


def bytes_of(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:,.0f} {unit}" if unit == "B" or value >= 100 else f"{value:,.1f} {unit}"


def seconds_of(duration: Duration) -> float:
    return float(duration.seconds) + duration.nanos / 1e9


def moment(stamp: Timestamp) -> dict[str, str]:
    """`iso`, `shown` (UTC) and how long ago or ahead: `relative`."""
    seconds = float(stamp.seconds) + stamp.nanos / 1e9
    try:
        when = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return {"iso": "", "shown": "-", "relative": ""}
    away = seconds - time.time()
    relative = f"in {span(away)}" if away > 0 else f"{span(-away)} ago"
    shown = when.strftime("%Y-%m-%d %H:%M:%S")
    return {"iso": when.strftime("%Y-%m-%dT%H:%M:%SZ"), "shown": shown, "relative": relative}


def word(kind: str, value: int) -> str:
    """A value of one of the contract's enums, such as `in flight` for DELIVERY_STATE_IN_FLIGHT."""
    enum, prefix = _ENUMS[kind]
    try:
        name = str(enum.Name(value))
    except ValueError:
        return str(value)
    return name.removeprefix(prefix).replace("_", " ").lower().replace("unspecified", "-")


def shown(kind: str, value: int) -> str:
    """As `word`, but a host's state in words that mean the same to who does not think of circuits."""
    said = word(kind, value)
    return (
        {"closed": "ok", "open": "down", "half open": "probing"}.get(said, said) if kind == "host" else said
    )


def term(kind: str, value: int) -> str:
    """What the API calls it."""
    enum, _ = _ENUMS[kind]
    return str(enum.Name(value)) if value in enum.values() else str(value)


def choices(kind: str) -> list[tuple[int, str]]:
    """All values but the unspecified one, and those that do not occur."""
    enum, _ = _ENUMS[kind]
    return [
        (value, shown(kind, value)) for value in enum.values() if value and value not in _NEVER.get(kind, ())
    ]


_ENUMS: Final[dict[str, tuple[Any, str]]] = {
    "state": (types_pb2.DeliveryState, "DELIVERY_STATE_"),
    "reason": (types_pb2.Reason, "REASON_"),
    "why dead": (types_pb2.Reason, "REASON_"),
    "priority": (types_pb2.Priority, "PRIORITY_"),
    "host": (operations_service_pb2.HostState, "HOST_STATE_"),
    "memory": (operations_service_pb2.MemoryState, "MEMORY_STATE_"),
    "bottleneck": (operations_service_pb2.Bottleneck, "BOTTLENECK_"),
    "task": (operations_service_pb2.MaintenanceTask, "MAINTENANCE_TASK_"),
    "missed": (operations_service_pb2.MissedRunPolicy, "MISSED_RUN_POLICY_"),
    "algorithm": (key_service_pb2.KeyAlgorithm, "KEY_ALGORITHM_"),
}
#: with these a delivery ends in another state than dead
_NEVER: Final = {
    "why dead": {
        types_pb2.REASON_OK,
        types_pb2.REASON_CANCELLED,
        types_pb2.REASON_SUPERSEDED,
        types_pb2.REASON_EXPIRED,
    }
}


def body(raw: bytes) -> str:
    """Of an activity: indented if it is JSON, cut if it is very long."""
    try:
        text = orjson.dumps(orjson.loads(raw), option=orjson.OPT_INDENT_2).decode()
    except ValueError:
        text = raw.decode(errors="replace")
    return _cut(text)


def exact(raw: bytes) -> str:
    """Of an activity, byte by byte; what is no UTF-8 as `\\xff`. Cut if it is very long."""
    return _cut(raw.decode(errors="backslashreplace"))


def _cut(text: str) -> str:
    if len(text) <= LONGEST_BODY:
        return text
    return f"{text[:LONGEST_BODY]}\n... {len(text) - LONGEST_BODY:,} characters more"


def plain(value: Any) -> str:
    """A value of a Struct."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def chosen(given: operations_service_pb2.DeadLetterFilter) -> list[tuple[str, str]]:
    """What a filter of dead letters asks for, named as its form does; of one that takes all, that it does."""
    asked = {
        "host": given.host,
        "activity_type": given.activity_type,
        "actor": given.actor,
        "reason": term("reason", given.reason).removeprefix("REASON_") if given.reason else "",
        "status": given.http_status,
        "start_ms": given.start_time.seconds * 1000,
        "end_ms": given.end_time.seconds * 1000,
    }
    return _filter(asked) or [("filter", "all")]


def details(given: Struct) -> list[tuple[str, str]]:
    """Of an audit event: names and values as other pages have them. A Struct has no order."""
    return [_detail(name, value) for name, value in sorted(MessageToDict(given).items())]


def _detail(name: str, value: Any) -> tuple[str, str]:
    said = name.replace("_", " ")
    if isinstance(value, dict):
        return said, ", ".join(f"{part} {asked}" for part, asked in _filter(value)) or "all"
    if isinstance(value, bool):
        return said, "yes" if value else "no"
    if name.endswith("_s") and isinstance(value, float):
        return said.removesuffix(" s"), span(value)
    return said, plain(value)


#: parts of a filter of dead letters as the audit has them, and as its form names and orders them
_FILTER: Final = {
    "host": "host", "activity_type": "type", "actor": "actor", "reason": "reason", "status": "HTTP status",
    "start_ms": "from", "end_ms": "until",
}  # fmt: skip


def _filter(given: dict[str, Any]) -> list[tuple[str, str]]:
    """What is asked for; of a filter as the audit has it."""
    return [(said, _asked(name, given[name])) for name, said in _FILTER.items() if given.get(name)]


def _asked(name: str, value: Any) -> str:
    if name == "reason":
        return str(value).replace("_", " ").lower()
    if name.endswith("_ms"):
        return moment(Timestamp(seconds=int(value) // 1000))["shown"]
    return plain(value)
