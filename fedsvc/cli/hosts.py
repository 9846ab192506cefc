"""`fedsvc hosts`: where deliveries go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from fedsvc.cli.output import Column, Number, emit, json_option, moment
from fedsvc.cli.pages import page_options, show_page
from fedsvc.cli.target import connect, target_option

if TYPE_CHECKING:
    from fedsvc_client import Host

_STATES = ("closed", "open", "half_open", "paused", "gone")
_COLUMNS: Final = (
    Column("host"),
    Column("state"),
    Column("waiting"),
    Column("in flight", spare=3),
    Column("failures", spare=1),
    Column("latency", spare=4),
    Column("last success", spare=2),
    Column("next try"),
)
#: seconds that a duration of protobuf can have
_LONGEST: Final = 315_576_000_000
_ORDERS = ("name", "backlog", "failures", "latency")


@click.group()
def hosts() -> None:
    """Hosts that deliveries go to."""


@hosts.command("list")
@click.argument("name_contains", default="")
@click.option("--sort", type=click.Choice(_ORDERS), default="backlog", show_default=True, help="By what.")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only these.")
@page_options()
@target_option
@json_option
def list_(
    name_contains: str,
    sort: str,
    states: tuple[str, ...],
    limit: int,
    page_token: str,
    target: str | None,
    as_json: bool,
) -> None:
    """List hosts, those whose names have NAME_CONTAINS in them if it is given.

    \b
    Example:
      fedsvc hosts list --state open --sort failures
    """
    with connect(target) as client:
        page = client.list_hosts(
            order=sort, states=states, name_contains=name_contains, page_size=limit, page_token=page_token
        )
    show_page(
        page,
        as_json,
        _COLUMNS,
        (
            (
                h.host,
                h.state.lower(),
                h.backlog,
                h.in_flight,
                h.failures,
                _latency(h),
                h.last_success_time,
                h.next_probe_time,
            )
            for h in page.hosts
        ),
        none="There are no such hosts.",
    )


@hosts.command()
@click.argument("host")
@target_option
@json_option
def show(host: str, target: str | None, as_json: bool) -> None:
    """Show a host and the recent attempts to send there."""
    with connect(target) as client:
        found, attempts = client.get_host(host)
    if as_json:
        emit({"host": found, "recent_attempts": attempts}, True, "")
        return
    click.echo(_told(found))
    click.echo("attempts")
    for each in attempts:
        a = each.attempt
        took = f"{a.latency.total_seconds():.3f} s"
        status = a.http_status or "-"
        click.echo(f"  {moment(a.time)}  {status:>4}  {a.reason.lower():<18} {took}  {each.delivery_id}")


@hosts.command()
@click.argument("host")
@click.option("--reason", default="", help="Why; shown with the host.")
@click.option("--seconds", type=Number(0, _LONGEST, min_open=True), help="For how long; for ever otherwise.")
@target_option
@json_option
def pause(host: str, reason: str, seconds: float | None, target: str | None, as_json: bool) -> None:
    """Send nothing to a host: what comes for it waits."""
    with connect(target) as client:
        _emit(client.pause_host(host, reason=reason, duration=seconds), as_json)


@hosts.command()
@click.argument("host")
@target_option
@json_option
def resume(host: str, target: str | None, as_json: bool) -> None:
    """Send to a host again."""
    with connect(target) as client:
        _emit(client.resume_host(host), as_json)


@hosts.command("set")
@click.argument("host")
@click.option("--max-in-flight", type=click.IntRange(0), help="At once; 0: the default.")
@click.option("--rate", type=Number(0), help="Deliveries per second; 0: the default.")
@click.option("--burst", type=click.IntRange(0), help="Deliveries at once after a rest.")
@click.option("--default", "reset", is_flag=True, help="Instead of limits: all of them become the default.")
@target_option
@json_option
def set_(
    host: str,
    max_in_flight: int | None,
    rate: float | None,
    burst: int | None,
    reset: bool,
    target: str | None,
    as_json: bool,
) -> None:
    """Set all limits of a host; those that are not given become the default.

    \b
    Examples:
      fedsvc hosts set busy.example --max-in-flight 4 --rate 0.5
      fedsvc hosts set busy.example --default
    """
    if reset == any(limit is not None for limit in (max_in_flight, rate, burst)):
        raise click.UsageError("give --max-in-flight, --rate or --burst, or --default alone")
    with connect(target) as client:
        changed = client.update_host_policy(
            host, max_in_flight=max_in_flight or 0, rate_per_second=rate or 0.0, burst=burst or 0
        )
    _emit(changed, as_json)


def _emit(host: Host, as_json: bool) -> None:
    emit(host, as_json, _told(host))


def _latency(h: Host) -> str | None:
    """None if it has never answered."""
    return f"{h.latency.total_seconds():.2f} s" if h.latency else None


def _told(h: Host) -> str:
    policy = h.policy
    limits = (
        ("in flight", policy.max_in_flight),
        ("per second", policy.rate_per_second),
        ("burst", policy.burst),
    )
    rows: list[tuple[str, Any]] = [
        ("host", h.host),
        ("state", h.state.lower()),
        ("waiting", f"{h.backlog:,}"),
        ("in flight", h.in_flight),
        ("failures", h.failures),
        ("latency", _latency(h) or "-"),
        ("last success", moment(h.last_success_time)),
        ("last failure", moment(h.last_failure_time)),
        ("next try", moment(h.next_probe_time)),
        ("limits", ", ".join(f"{value:g} {name}" for name, value in limits if value) or "the default"),
    ]
    if h.state == "PAUSED":
        rows += [("paused until", moment(h.pause_end_time)), ("because", h.pause_reason or "-")]
    return "\n".join(f"{name:<13} {value}" for name, value in rows)
