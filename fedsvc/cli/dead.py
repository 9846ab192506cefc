"""`fedsvc dead`: dead letters."""

from __future__ import annotations

import click

from fedsvc.cli.output import emit, moment, plain
from fedsvc.cli.target import connect, target_option
from fedsvc.domain.classify import clean


@click.group()
def dead() -> None:
    """Deliveries that were given up."""


@dead.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@click.option("--page-token", default="", help="Go on where a list before ended.")
@target_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(limit: int, page_token: str, target: str | None, as_json: bool) -> None:
    """List dead letters, newest first."""
    from rich.console import Console
    from rich.table import Table

    with connect(target) as client:
        page = client.list_dead_letters(page_size=limit, page_token=page_token)
    if as_json:
        emit(page, True, "")
        return
    table = Table()
    table.add_column("delivery", no_wrap=True)
    for name in ("ended", "type", "reason", "status", "attempts"):
        table.add_column(name)
    table.add_column("inbox", overflow="fold")
    for letter in page.dead_letters:
        table.add_row(
            letter.delivery_id,
            moment(letter.complete_time),
            letter.activity_type,
            letter.reason.lower(),
            str(letter.http_status or "-"),
            str(letter.attempts),
            letter.inbox,
        )
    # What others wrote is no markup: [fe80::1] is a host, not a style.
    Console(markup=False, emoji=False).print(table if page.dead_letters else "There are no dead letters.")
    if page.next_page_token:
        click.echo(f"There are more: --page-token {page.next_page_token}")


@dead.command()
@click.argument("delivery_id")
@target_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(delivery_id: str, target: str | None, as_json: bool) -> None:
    """Show one dead letter: what was sent, and every attempt."""
    with connect(target) as client:
        letter, body = client.get_dead_letter(delivery_id)
    if as_json:
        emit({**plain(letter), "activity": plain(body)}, True, "")
        return
    for name, value in (
        ("delivery", letter.delivery_id),
        ("activity", f"{letter.activity_type} {letter.activity_id}"),
        ("actor", letter.actor),
        ("inbox", letter.inbox),
        ("key", letter.key_id),
        ("accepted", moment(letter.accept_time)),
        ("ended", moment(letter.complete_time)),
        ("reason", letter.reason.lower()),
        ("status", letter.http_status or "-"),
        ("answer", letter.response_snippet or "-"),
    ):
        click.echo(f"{name:<9} {value}")
    click.echo("attempts")
    for attempt in letter.attempt_history:
        status = attempt.http_status or "-"
        took = f"{attempt.latency.total_seconds():.3f} s"
        click.echo(f"  {moment(attempt.time)}  {status:>4}  {attempt.reason.lower():<18} {took}")
    for line in body.decode(errors="replace").splitlines():
        click.echo(clean(line, len(line)))
