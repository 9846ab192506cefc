"""`fedsvc stats`: the queue in figures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from fedsvc.cli.output import age, emit
from fedsvc.cli.target import connect, target_option

if TYPE_CHECKING:
    from fedsvc_client import QueueStats
    from rich.console import Group


@click.command()
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@target_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch one object a line.")
def stats(watch: bool, target: str | None, as_json: bool) -> None:
    """Show what the queue holds and does."""
    from rich.console import Console
    from rich.live import Live

    with connect(target) as client:
        if not watch:
            figures = client.get_queue_stats()
            if as_json:
                emit(figures, True, "")
            else:
                Console().print(table(figures))
            return
        try:
            if as_json:
                while True:
                    import json

                    from fedsvc.cli.output import plain

                    click.echo(json.dumps(plain(client.get_queue_stats())))
                    time.sleep(1)
            with Live(table(client.get_queue_stats()), refresh_per_second=4) as live:
                while True:
                    time.sleep(1)
                    live.update(table(client.get_queue_stats()))
        except KeyboardInterrupt:
            return


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
        "scheduled",
    ):  # fmt: skip
        totals.add_row(name, f"{getattr(s, name):,}")
    totals.add_row("adds up", "yes" if s.conserved else "NO")
    for rates in s.rates:
        window = age(rates.window)
        totals.add_row(f"accepted/s ({window})", f"{rates.accepted:.1f}")
        totals.add_row(f"delivered/s ({window})", f"{rates.delivered:.1f}")
    totals.add_row("workers", str(s.consumers))
    totals.add_row("archive behind", f"{s.archive_backlog:,}")
    memory = f"{s.redis_used_memory / 1048576:.1f} MiB"
    totals.add_row(f"{s.redis_server} {s.redis_version}", memory)
    return Group(priorities, totals)
