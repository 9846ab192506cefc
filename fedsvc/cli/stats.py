"""`fedsvc stats`: the queue in figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from fedsvc.cli.output import age, console, emit, memory_size, plain, show
from fedsvc.cli.target import connect, target_option

if TYPE_CHECKING:
    from fedsvc_client import FedsvcClient, MemoryStatus, QueueStats, RetryStats
    from rich.console import Group


@click.command()
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.option(
    "--retries", is_flag=True, help="What waits for another attempt: by when, type, attempts, reason."
)
@click.option("--memory", is_flag=True, help="Redis's memory: how full, its thresholds, what it holds.")
@target_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch one object a line.")
def stats(watch: bool, retries: bool, memory: bool, target: str | None, as_json: bool) -> None:
    """Show what the queue holds and does."""
    if watch + retries + memory > 1:
        raise click.UsageError("give one of --watch, --retries and --memory")
    with connect(target) as client:
        if retries or memory:
            told = client.get_retry_stats() if retries else client.get_memory_status()
            if as_json:
                emit(told, True, "")
            else:
                show(_more(told))
            return
        if not watch:
            figures = client.get_queue_stats()
            if as_json:
                emit(figures, True, "")
            else:
                show(table(figures))
            return
        with suppress(KeyboardInterrupt):
            if as_json or not sys.stdout.isatty():
                _print_for_ever(client, as_json)
            else:
                _show_for_ever(client)


def _watched(client: FedsvcClient) -> Iterator[QueueStats | None]:
    """Figures; None for each time that the server, which has told some, could not be reached for as long as
    the client waits. Raises Unavailable if it tells none at first."""
    from fedsvc_client import Unavailable

    told = False
    while True:
        try:
            for figures in client.watch_queue_stats():
                told = True
                yield figures
        except Unavailable:
            if not told:
                raise
            yield None


_AWAY: Final = "the server does not answer; it is tried again until Ctrl-C"


def _print_for_ever(client: FedsvcClient, as_json: bool) -> None:
    away = False
    for figures in _watched(client):
        if figures is not None and as_json:
            click.echo(json.dumps(plain(figures)))
        elif figures is not None:
            show(table(figures))
        elif not away:
            click.echo(f"fedsvc: {_AWAY}", err=True)
        away = figures is None


def _show_for_ever(client: FedsvcClient) -> None:
    from rich.console import Group
    from rich.live import Live

    with Live(console=console(), refresh_per_second=4, screen=True) as live:
        for figures in _watched(client):
            if figures is not None:
                last = table(figures)
                live.update(last)
            else:
                # Above, where a low terminal does not cut it off.
                live.update(Group(f"Old figures: {_AWAY}.", last))


def _more(told: RetryStats | MemoryStatus) -> Group:
    from fedsvc_client import RetryStats

    from fedsvc.cli import figures

    return figures.retries(told) if isinstance(told, RetryStats) else figures.memory(told)


def table(s: QueueStats) -> Group:
    from rich.console import Group
    from rich.table import Table

    priorities = Table("priority", title="Queue", title_justify="left")
    for name in ("ready", "in flight", "oldest waits"):
        priorities.add_column(name, justify="right")
    for priority, p in s.priorities.items():
        priorities.add_row(priority.lower(), f"{p.ready:,}", f"{p.in_flight:,}", age(p.oldest_age))
    totals = Table("", show_header=False)
    totals.add_column(justify="right")
    for name in (
        "accepted", "delivered", "dead", "purged", "cancelled", "superseded", "expired", "pending", "retry",
        "scheduled", "parked",
    ):  # fmt: skip
        totals.add_row(name, f"{getattr(s, name):,}")
    totals.add_row("adds up", "yes" if s.conserved else "NO")
    for rates in s.rates:
        window = age(rates.window)
        totals.add_row(f"accepted/s ({window})", f"{rates.accepted:.1f}")
        totals.add_row(f"delivered/s ({window})", f"{rates.delivered:.1f}")
    totals.add_row("workers", str(s.consumers))
    totals.add_row("held up by", s.bottleneck.lower().replace("_", " "))
    totals.add_row("hosts down", f"{s.open_circuits:,}")
    totals.add_row("archive behind", f"{s.archive_backlog:,}")
    totals.add_row(f"{s.redis_server} {s.redis_version}", memory_size(s.redis_used_memory))
    return Group(priorities, totals)
