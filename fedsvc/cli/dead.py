"""`fedsvc dead`: dead letters."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from fedsvc.cli.completion import activity_types, one_of, reasons
from fedsvc.cli.delivery_text import delivery_text
from fedsvc.cli.output import (
    TIME_HELP,
    Column,
    Moment,
    check_askable,
    counted,
    emit,
    json_option,
    plain,
    show_table,
)
from fedsvc.cli.pages import limit_option, page_options, show_page
from fedsvc.cli.target import connect, target_option
from fedsvc.domain.classify import clean

if TYPE_CHECKING:
    from fedsvc_client import DeadLetterFilter, FedsvcClient, Operation

_COLUMNS: Final = (
    Column("delivery"),
    Column("ended"),
    Column("type", spare=1),
    Column("reason"),
    Column("status", spare=2),
    Column("attempts", spare=3),
    Column("inbox", whole=False),
)
_OPERATION_COLUMNS: Final = (
    Column("operation"),
    Column("began"),
    Column("kind"),
    Column("by", spare=1),
    Column("how far"),
    Column("state", whole=False, least=12),
)
#: seconds between two looks at how far an operation is
_LOOK_EVERY: Final = 0.25
#: looks after which that is told where no bar shows it
_TELL_EVERY: Final = 20


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--until", type=Moment(), help=f"Given up before: {TIME_HELP}"),
        click.option("--since", type=Moment(), help=f"Given up at or after: {TIME_HELP}"),
        click.option("--status", type=click.IntRange(100, 999), default=None, help="Last status of HTTP."),
        click.option(
            "--reason",
            type=click.Choice(reasons(), case_sensitive=False),
            metavar="REASON",
            help="Such as GONE, NOT_FOUND or UNAVAILABLE.",
            shell_complete=one_of(reasons),
        ),
        click.option("--actor", default="", help="Id of the actor who sent them."),
        click.option(
            "--type",
            "activity_type",
            default="",
            help="Such as Create.",
            shell_complete=one_of(activity_types),
        ),
        click.option("--host", default="", help="To this host."),
    ):
        command = option(command)
    return command


def _chosen(given: dict[str, Any]) -> DeadLetterFilter | None:
    """None if no option of a filter was given."""
    from fedsvc_client import DeadLetterFilter

    names = {"since": "start_time", "until": "end_time", "status": "http_status"}
    fields = {names.get(name, name): value for name, value in given.items() if value}
    return DeadLetterFilter(**fields) if fields else None


@click.group()
def dead() -> None:
    """Deliveries that were given up."""


@dead.command("list")
@filter_options
@page_options()
@target_option
@json_option
def list_(limit: int, page_token: str, target: str | None, as_json: bool, **given: Any) -> None:
    """List dead letters, newest first: those that fit all that is given.

    \b
    Example:
      fedsvc dead list --host lemmy.example --since 8h --reason NOT_FOUND
    """
    with connect(target) as client:
        page = client.list_dead_letters(_chosen(given), page_size=limit, page_token=page_token)
    show_page(
        page,
        as_json,
        _COLUMNS,
        (
            (
                letter.delivery_id,
                letter.complete_time,
                letter.activity_type,
                letter.reason.lower(),
                letter.http_status or None,
                letter.attempts,
                letter.inbox,
            )
            for letter in page.dead_letters
        ),
        none="There are none here." if page.next_page_token else "There are no dead letters.",
        more="There may be more",
    )


@dead.command()
@click.argument("delivery_id")
@target_option
@json_option
def show(delivery_id: str, target: str | None, as_json: bool) -> None:
    """Show one dead letter: what was sent, and every attempt."""
    with connect(target) as client:
        letter, body = client.get_dead_letter(delivery_id)
    if as_json:
        emit({**plain(letter), "activity": plain(body)}, True, "")
        return
    click.echo(delivery_text(letter))
    for line in body.decode(errors="replace").splitlines():
        click.echo(clean(line, len(line)))


def _operation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        json_option,
        target_option,
        click.option("--no-wait", is_flag=True, help="Do not wait until it is done."),
        click.option("--limit", type=click.IntRange(1), default=None, help="At most so many."),
        click.option("--dry-run", is_flag=True, help="Only say how many it would be."),
        click.option("--all", "everything", is_flag=True, help="All, if no filter is given."),
        filter_options,
        click.argument("delivery_ids", nargs=-1),
    ):
        command = option(command)
    return command


@dead.command()
@_operation_options
def replay(**given: Any) -> None:
    """Send dead letters again: DELIVERY_IDS, or those that fit.

    They are new deliveries but for their history: they get all attempts and the whole time again. What dies
    meanwhile is not replayed. Exit code 1 if it ended badly, or if none of DELIVERY_IDS is a dead letter.

    \b
    Example:
      fedsvc dead replay --since 8h --reason UNAVAILABLE
    """
    _operate("replay", **given)


@dead.command()
@_operation_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(yes: bool, **given: Any) -> None:
    """Remove dead letters for good: DELIVERY_IDS, or those that fit.

    Exit code 1 if it ended badly, or if none of DELIVERY_IDS is a dead letter.

    \b
    Example:
      fedsvc dead purge --host gone.example --yes
    """
    check_askable(yes or given["dry_run"])
    _operate("purge", ask=not yes, **given)


def _operate(
    kind: str,
    *,
    delivery_ids: tuple[str, ...],
    everything: bool,
    dry_run: bool,
    limit: int | None,
    no_wait: bool,
    target: str | None,
    as_json: bool,
    ask: bool = False,
    **given: Any,
) -> None:
    from fedsvc_client import DeadLetterFilter

    chosen = _chosen(given)
    if delivery_ids and (chosen or everything):
        raise click.UsageError("give either DELIVERY_IDS or a filter")
    if everything and chosen:
        raise click.UsageError("--all goes without a filter")
    if not delivery_ids and chosen is None:
        if not everything:
            raise click.UsageError("give DELIVERY_IDS, a filter, or --all")
        chosen = DeadLetterFilter()
    what: dict[str, Any] = {"delivery_ids": delivery_ids, "filter": chosen, "limit": limit or 0}
    with connect(target) as client:
        begin = client.replay_dead_letters if kind == "replay" else client.purge_dead_letters
        if ask and not dry_run:
            found = _follow(client, begin(dry_run=True, **what), quiet=True)
            if delivery_ids and not found.total:
                raise click.ClickException(_none_of(delivery_ids))
            click.confirm(f"Remove {counted(found.total, 'dead letter')} for good?", abort=True, err=True)
        operation = begin(dry_run=dry_run, **what)
        if not no_wait:
            operation = _follow(client, operation, quiet=as_json)
    missed = delivery_ids and operation.done and not (dry_run or operation.error or operation.completed)
    if as_json or not missed:
        emit(operation, as_json, _told(operation))
    if missed:
        raise click.ClickException(_none_of(delivery_ids))
    if operation.error:
        raise click.ClickException(f"{kind} {operation.operation_id}: {operation.error}")


def _none_of(delivery_ids: tuple[str, ...]) -> str:
    """Why nothing was done with what was named."""
    named = set(delivery_ids)
    if len(named) == 1:
        return f"{delivery_ids[0]} is no dead letter"
    return f"none of these {len(named):,} deliveries is a dead letter"


def _follow(client: FedsvcClient, operation: Operation, *, quiet: bool) -> Operation:
    """Until it has ended; whoever interrupts this leaves it running. `quiet`: say nothing meanwhile."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    unseen = quiet or not console.is_terminal  # which would get an empty line
    with Progress(*columns, console=console, disable=unseen, transient=True) as bar:
        task, looks = bar.add_task(operation.kind, total=None), 0
        while not operation.done:
            time.sleep(_LOOK_EVERY)
            operation = client.get_operation(operation.operation_id)
            bar.update(task, total=operation.total or None, completed=operation.completed)
            looks += 1
            if not (quiet or console.is_terminal or operation.done or looks % _TELL_EVERY):
                far = f"{operation.completed:,} of {operation.total:,}"
                click.echo(f"{operation.kind} {operation.operation_id}: {far}", err=True)
    return operation


def _told(o: Operation) -> str:
    done = {"replay": "replayed", "purge": "purged"}[o.kind]
    if not o.done:
        return f"{o.kind} {o.operation_id} goes on: fedsvc dead operations"
    if o.error:
        return f"{o.kind} {o.operation_id}: {o.error}; {o.completed:,} of {o.total:,} {done}"
    text = f"{o.total:,} would be {done}" if o.dry_run else f"{o.completed:,} of {o.total:,} {done}"
    if o.failed:
        text += f"; {o.failed:,} {'is no dead letter' if o.failed == 1 else 'are no dead letters'}"
    if o.limit_reached:
        text += "; there are more than --limit"
    return text


@dead.command()
@limit_option(20)
@target_option
@json_option
def operations(limit: int, target: str | None, as_json: bool) -> None:
    """List replays and purges, newest first."""
    with connect(target) as client:
        page = client.list_operations(page_size=limit)
    if as_json:
        emit(page, True, "")
        return
    show_table(
        _OPERATION_COLUMNS,
        (
            (
                o.operation_id,
                o.create_time,
                o.kind,
                o.principal,
                f"{o.completed:,} of {o.total:,}",
                o.error or ("dry run" if o.dry_run else "done") if o.done else "goes on",
            )
            for o in page.operations
        ),
        none="There were no replays or purges.",
    )
