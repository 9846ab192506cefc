"""`fedsvc audit`: who changed what."""

from __future__ import annotations

import json
from datetime import datetime

import click

from fedsvc.cli.output import Moment, emit, json_option, moment
from fedsvc.cli.target import connect, target_option


@click.command()
@click.option("--principal", default="", help="Only what this caller did.")
@click.option("--action", default="", help="Only this, such as host.pause.")
@click.option("--since", type=Moment(), help="At or after: a time, or an age such as 8h.")
@click.option("--until", type=Moment(), help="Before.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@click.option("--page-token", default="", help="Go on where a list before ended.")
@target_option
@json_option
def audit(
    principal: str,
    action: str,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    page_token: str,
    target: str | None,
    as_json: bool,
) -> None:
    """List who paused, replayed, purged, or changed keys and limits; newest first."""
    from rich.console import Console
    from rich.table import Table

    with connect(target) as client:
        page = client.list_audit_events(
            principal=principal,
            action=action,
            start_time=since,
            end_time=until,
            page_size=limit,
            page_token=page_token,
        )
    if as_json:
        emit(page, True, "")
        return
    table = Table("time", "who", "action", "subject", "details")
    for event in page.audit_events:
        details = json.dumps(event.details) if event.details else ""
        table.add_row(moment(event.time), event.principal, event.action, event.subject, details)
    none = "Nothing was changed."
    Console(markup=False, emoji=False).print(table if page.audit_events else none)
    if page.next_page_token:
        click.echo(f"There are more: --page-token {page.next_page_token}")
