"""Figures of retries and of Redis's memory, as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fedsvc.cli.output import age, memory_size, moment

if TYPE_CHECKING:
    from fedsvc_client import Cleanup, MemoryStatus, RetryStats
    from rich.console import Group
    from rich.table import Table


def retries(s: RetryStats) -> Group:
    from rich.console import Group

    totals = _table("Retries", ("", ""), (
        ("wait for another attempt", f"{s.retry:,}"),
        ("wait for their time", f"{s.scheduled:,}"),
        ("of both, due now", f"{s.due:,}"),
        ("next due", moment(s.next_due_time)),
    ))  # fmt: skip
    due = [(_by_when(within), f"{n:,}") for within, n in s.histogram]
    return Group(
        totals,
        _table("Next due", ("", "deliveries"), due),
        _table("By type", ("type", "deliveries"), _counts(s.by_type, other="others")),
        _table("By attempts made", ("attempts", "deliveries"), _counts(s.by_attempt)),
        _table("By last result", ("reason", "deliveries"), _counts(s.by_reason)),
    )


def _by_when(within: timedelta | None) -> str:
    if within is None:
        return "later"
    return f"within {age(within)}" if within else "due now"


def memory(s: MemoryStatus) -> Group:
    from rich.console import Group

    totals = _table("Redis's memory", ("", ""), (
        ("state", s.state.lower()),
        ("used", memory_size(s.used_bytes)),
        ("peak", memory_size(s.peak_bytes)),
        ("resident", memory_size(s.rss_bytes)),
        ("fragmentation", f"{s.fragmentation_ratio:.2f}"),
        ("maxmemory", memory_size(s.max_bytes) if s.max_bytes else "no limit"),
        ("warning from", memory_size(s.warning_threshold_bytes) if s.max_bytes else "-"),
        ("critical from", memory_size(s.critical_threshold_bytes) if s.max_bytes else "-"),
        ("eviction", s.eviction_policy),
    ))  # fmt: skip
    categories = [(c.name.replace("_", " "), f"{c.entries:,}", memory_size(c.bytes)) for c in s.categories]
    return Group(totals, _table("By what it holds", ("what", "entries", "about"), categories))


def freed(cleanup: Cleanup) -> Table:
    rows = [(c.name.replace("_", " "), f"{c.entries:,}") for c in cleanup.freed]
    return _table(f"Forgotten; Redis uses {memory_size(cleanup.freed_bytes)} less", ("what", "entries"), rows)


def _counts(counts: Mapping[Any, int], *, other: str = "-") -> list[tuple[str, str]]:
    return [
        (str(name).lower() if str(name).isupper() else str(name) or other, f"{n:,}")
        for name, n in counts.items()
    ]


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    first, *others = columns
    heading = Text(title, style="italic", no_wrap=True, overflow="ignore")  # also above a narrow table
    table = Table(first, title=heading, title_justify="left", show_header=bool(first or any(others)))
    for name in others:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
