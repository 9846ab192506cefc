"""`fedsvc schedules`: what is done again and again."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from fedsvc.cli import files
from fedsvc.cli.files import read_whole
from fedsvc.cli.output import (
    Column,
    Number,
    age,
    counted,
    emit,
    json_option,
    moment,
    whole_numbers,
)
from fedsvc.cli.pages import page_options, show_page
from fedsvc.cli.target import connect, target_option
from fedsvc.domain.schedule import LONGEST_MS, SHORTEST_MS, Task
from fedsvc.errors import ConfigurationError

if TYPE_CHECKING:
    from fedsvc_client import Schedule

_COLUMNS: Final = (
    Column("schedule"),
    Column("when", whole=False, least=14),
    Column("what", whole=False),
    Column("last run", spare=1),
    Column("next run"),
    Column("last error", whole=False, least=12),
)
_TASKS: Final = tuple(task.name.lower() for task in Task)


@click.group()
def schedules() -> None:
    """What is done again and again: activities that are sent, and maintenance."""


@schedules.command("list")
@page_options(100)
@target_option
@json_option
def list_(limit: int, page_token: str, target: str | None, as_json: bool) -> None:
    """List schedules by id."""
    with connect(target) as client:
        page = client.list_schedules(page_size=limit, page_token=page_token)
    show_page(
        page,
        as_json,
        _COLUMNS,
        (
            (
                s.schedule_id,
                _when(s),
                _what(s),
                s.last_run_time,
                "paused" if s.paused else s.next_run_time,
                s.last_error,
            )
            for s in page.schedules
        ),
        none="There are no schedules.",
    )


@schedules.command()
@click.argument("schedule_id")
@target_option
@json_option
def show(schedule_id: str, target: str | None, as_json: bool) -> None:
    """Show a schedule, with what it sends."""
    with connect(target) as client:
        found = client.get_schedule(schedule_id)
    emit(found, as_json, _told(found))


@schedules.command()
@click.argument("schedule_id")
@click.option("--cron", default="", help="When: minute, hour, day of month, month, day of week.")
@click.option(
    "--time-zone", default="UTC", show_default=True, help="IANA name of the zone that --cron is in."
)
@click.option(
    "--interval", type=Number(SHORTEST_MS // 1000, LONGEST_MS // 1000), help="When: every so many seconds."
)
@click.option("--activity", type=click.File("rb"), help="Send this template; - for standard input.")
@click.option("--inbox", "inboxes", multiple=True, help="To this inbox; may be given again.")
@click.option("--inboxes-file", type=click.File("rb"), help="To these inboxes, one a line.")
@click.option("--key-id", default="", help="Signed with this registered key.")
@click.option("--task", type=click.Choice(_TASKS), help="Or do this.")
@click.option("--argument", "arguments", multiple=True, metavar="NAME=VALUE", help="Of the task.")
@click.option("--description", default="", help="For people.")
@click.option("--skip-missed", is_flag=True, help="Leave out runs that were missed, instead of one for all.")
@click.option("--paused", is_flag=True, help="Do not run it yet.")
@click.option("--replace", is_flag=True, help="In the place of the one of this id.")
@target_option
@json_option
def create(
    schedule_id: str,
    cron: str,
    time_zone: str,
    interval: float | None,
    activity: BinaryIO | None,
    inboxes: tuple[str, ...],
    inboxes_file: BinaryIO | None,
    key_id: str,
    task: str | None,
    arguments: tuple[str, ...],
    description: str,
    skip_missed: bool,
    paused: bool,
    replace: bool,
    target: str | None,
    as_json: bool,
) -> None:
    """Have something done again and again, under the name SCHEDULE_ID.

    In a template, {run_id} stands for what names the run and {time} for its time; the id of the activity
    needs one of them.

    \b
    Examples:
      fedsvc schedules create nightly --cron "0 4 * * *" --time-zone Europe/Berlin \\
        --task dead_letter_replay --argument reason=UNAVAILABLE --argument max_age_seconds=86400
      fedsvc schedules create weekly --cron "0 9 * * MON" --activity weekly.json \\
        --inboxes-file followers.txt --key-id https://me.example/u/ada#main-key
    """
    from fedsvc_client import Schedule, ScheduledFanOut

    if bool(cron) == (interval is not None):
        raise click.UsageError("give either --cron or --interval")
    if bool(task) == (activity is not None):
        raise click.UsageError("give either --activity or --task")
    fan_out = None
    if activity is not None:
        lines = _lines(inboxes_file) if inboxes_file is not None else []
        body = read_whole(activity, "--activity", files.ACTIVITY)
        fan_out = ScheduledFanOut(body, (*inboxes, *lines), key_id)
    wanted = Schedule(
        schedule_id=schedule_id,
        cron=cron,
        interval=timedelta(seconds=interval) if interval is not None else None,
        time_zone=time_zone,
        fan_out=fan_out,
        task=task or "",
        task_arguments=dict(_argument(text) for text in arguments),
        description=description,
        missed_runs="SKIP" if skip_missed else "ONCE",
        paused=paused,
    )
    with connect(target) as client:
        made = client.update_schedule(wanted) if replace else client.create_schedule(wanted)
    emit(made, as_json, _told(made))


@schedules.command()
@click.argument("schedule_id")
@target_option
@json_option
def pause(schedule_id: str, target: str | None, as_json: bool) -> None:
    """Do not run it until it is resumed. A run that is on its way goes on."""
    with connect(target) as client:
        found = client.pause_schedule(schedule_id)
    emit(found, as_json, f"{found.schedule_id} is paused")


@schedules.command()
@click.argument("schedule_id")
@target_option
@json_option
def resume(schedule_id: str, target: str | None, as_json: bool) -> None:
    """Run it again from now on."""
    with connect(target) as client:
        found = client.resume_schedule(schedule_id)
    emit(found, as_json, f"{found.schedule_id} runs next at {moment(found.next_run_time)}")


@schedules.command()
@click.argument("schedule_id")
@target_option
@json_option
def delete(schedule_id: str, target: str | None, as_json: bool) -> None:
    """Forget a schedule."""
    with connect(target) as client:
        client.delete_schedule(schedule_id)
    emit({"deleted": schedule_id}, as_json, f"{schedule_id} is deleted")


def _lines(file: BinaryIO) -> list[str]:
    try:
        return read_whole(file, "--inboxes-file", files.INBOXES).decode().split()
    except UnicodeDecodeError:
        raise ConfigurationError("--inboxes-file", f"{file.name} is not text in UTF-8") from None


def _argument(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise click.UsageError(f"--argument {text}: expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _when(s: Schedule) -> str:
    return f"every {age(s.interval)}" if s.interval is not None else f"{s.cron} ({s.time_zone})"


def _what(s: Schedule) -> str:
    if s.fan_out is not None:
        return f"send to {counted(len(s.fan_out.inboxes), 'inbox', 'inboxes')}"
    given = ", ".join(f"{name}={value}" for name, value in sorted(whole_numbers(s.task_arguments).items()))
    return s.task.lower().replace("_", " ") + (f" ({given})" if given else "")


def _told(s: Schedule) -> str:
    rows = [
        ("schedule", s.schedule_id),
        ("for", s.description or "-"),
        ("when", _when(s)),
        ("what", _what(s)),
        ("if missed", {"ONCE": "one run for all", "SKIP": "left out"}.get(s.missed_runs, s.missed_runs)),
        ("last run", moment(s.last_run_time)),
        ("next run", "paused" if s.paused else moment(s.next_run_time)),
        ("last error", s.last_error or "-"),
    ]
    lines = [f"{name:<11} {value}" for name, value in rows]
    if s.fan_out is not None:
        lines += [f"{'key':<11} {s.fan_out.key_id}", s.fan_out.activity.decode(errors="replace")]
    return "\n".join(lines)
