"""`fedsvc deliveries`: what became of an activity, for every recipient."""

from __future__ import annotations

from typing import Final

import click

from fedsvc.cli.delivery_text import delivery_text
from fedsvc.cli.output import Column, check_askable, counted, emit, json_option
from fedsvc.cli.pages import page_options, show_page
from fedsvc.cli.target import connect, target_option
from fedsvc.domain.delivery import DeliveryState

_STATES: Final = tuple(state.name.lower() for state in DeliveryState)
_COLUMNS: Final = (
    Column("inbox", whole=False),
    Column("state"),
    Column("attempts", spare=3),
    Column("status", spare=2),
    Column("last result"),
    Column("next try or end", spare=1),
    Column("delivery"),
)


@click.group()
def deliveries() -> None:
    """What became of an activity, for every recipient."""


@deliveries.command("list")
@click.argument("activity_id")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only these.")
@page_options()
@target_option
@json_option
def list_(
    activity_id: str, states: tuple[str, ...], limit: int, page_token: str, target: str | None, as_json: bool
) -> None:
    """List the deliveries of an activity: how many are in each state, and where each is.

    \b
    Example:
      fedsvc deliveries list https://me.example/activities/17 --state retry --state parked
    """
    with connect(target) as client:
        page = client.list_deliveries(
            activity_id, page_size=limit, page_token=page_token, states=[s.upper() for s in states]
        )
    if page.summary and not as_json:
        click.echo(", ".join(f"{number:,} {state.lower()}" for state, number in page.summary.items()))
    show_page(
        page,
        as_json,
        _COLUMNS,
        (
            (
                d.inbox,
                d.state.lower(),
                d.attempts,
                d.http_status or None,
                d.reason.lower(),
                d.next_attempt_time or d.complete_time,
                d.delivery_id,
            )
            for d in page.deliveries
        ),
        none="There are no such deliveries.",
    )


@deliveries.command()
@click.argument("delivery_id")
@target_option
@json_option
def show(delivery_id: str, target: str | None, as_json: bool) -> None:
    """Show one delivery, and every attempt."""
    with connect(target) as client:
        found = client.get_delivery(delivery_id)
    emit(found, as_json, delivery_text(found))


@deliveries.command()
@click.argument("delivery_ids", nargs=-1)
@click.option("--activity", "activity_id", default="", help="All of this activity that were not sent yet.")
@click.option("--host", default="", help="All to this host that were not sent yet.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@target_option
@json_option
def cancel(
    delivery_ids: tuple[str, ...], activity_id: str, host: str, yes: bool, target: str | None, as_json: bool
) -> None:
    """Take back what was not sent yet: DELIVERY_IDS, or all of an activity, or all to a host."""
    if sum(map(bool, (delivery_ids, activity_id, host))) != 1:
        raise click.UsageError("give either DELIVERY_IDS, --activity or --host")
    check_askable(yes)
    if not yes:
        what = activity_id or (
            f"everything to {host}" if host else counted(len(delivery_ids), "delivery", "deliveries")
        )
        click.confirm(f"Cancel {what}?", abort=True, err=True)
    with connect(target) as client:
        done = client.cancel_deliveries(delivery_ids, activity_id=activity_id, host=host)
    on_their_way = counted(done.in_flight, "on its way", "on their way")
    text = f"{done.cancelled:,} cancelled, {on_their_way}, {done.ended:,} had ended"
    emit(done, as_json, text)
