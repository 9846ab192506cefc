"""Figures of retries and of Redis's memory, as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fedsvc.cli.output import age, moment

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
    due = [("later" if within is None else f"within {age(within)}", f"{n:,}") for within, n in s.histogram]
    return Group(
        totals,
        _table("Next due", ("", "deliveries"), due),
        _table("By type", ("type", "deliveries"), _counts(s.by_type, other="others")),
        _table("By attempts made", ("attempts", "deliveries"), _counts(s.by_attempt)),
        _table("By last result", ("reason", "deliveries"), _counts(s.by_reason)),
    )


def memory(s: MemoryStatus) -> Group:
    from rich.console import Group

    totals = _table("Redis's memory", ("", ""), (
        ("state", s.state.lower()),
        ("used", _mib(s.used_bytes)),
        ("peak", _mib(s.peak_bytes)),
        ("resident", _mib(s.rss_bytes)),
        ("fragmentation", f"{s.fragmentation_ratio:.2f}"),
        ("maxmemory", _mib(s.max_bytes) if s.max_bytes else "no limit"),
        ("warning from", _mib(s.warning_threshold_bytes) if s.max_bytes else "-"),
        ("critical from", _mib(s.critical_threshold_bytes) if s.max_bytes else "-"),
        ("eviction", s.eviction_policy),
    ))  # fmt: skip
    categories = [(c.name.replace("_", " "), f"{c.entries:,}", _mib(c.bytes)) for c in s.categories]
    return Group(totals, _table("By what it holds", ("what", "entries", "about"), categories))


def freed(cleanup: Cleanup) -> Table:
    rows = [(c.name.replace("_", " "), f"{c.entries:,}") for c in cleanup.freed]
    return _table(f"Forgotten, {_mib(cleanup.freed_bytes)} of Redis", ("what", "entries"), rows)


def _counts(counts: Mapping[Any, int], *, other: str = "-") -> list[tuple[str, str]]:
    return [
        (str(name).lower() if str(name).isupper() else str(name) or other, f"{n:,}")
        for name, n in counts.items()
    ]


def _mib(size: int) -> str:
    return f"{size / 1048576:,.1f} MiB"


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    from rich.table import Table

    first, *others = columns
    table = Table(first, title=title, title_justify="left", show_header=bool(first or any(others)))
    for name in others:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
