"""`fedsvc audit`: who changed what."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Final

import click

from fedsvc.cli.output import TIME_HELP, Column, Moment, json_option, whole_numbers
from fedsvc.cli.pages import page_options, show_page
from fedsvc.cli.target import connect, target_option

_COLUMNS: Final = (
    Column("time"),
    Column("who"),
    Column("action"),
    Column("subject"),
    Column("details", whole=False),
)


@click.command()
@click.option("--principal", default="", help="Only what this caller did.")
@click.option("--action", default="", help="Only this, such as host.pause.")
@click.option("--since", type=Moment(), help=f"At or after: {TIME_HELP}")
@click.option("--until", type=Moment(), help=f"Before: {TIME_HELP}")
@page_options()
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
    with connect(target) as client:
        page = client.list_audit_events(
            principal=principal,
            action=action,
            start_time=since,
            end_time=until,
            page_size=limit,
            page_token=page_token,
        )
    show_page(
        page,
        as_json,
        _COLUMNS,
        (
            (
                event.time,
                event.principal,
                event.action,
                event.subject,
                json.dumps(whole_numbers(event.details)) if event.details else None,
            )
            for event in page.audit_events
        ),
        none="Nothing was changed.",
    )
