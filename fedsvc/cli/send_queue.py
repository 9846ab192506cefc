"""`fedsvc import`: take over what PieFed's `send_queue` holds."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import click

from fedsvc.cli.importer import Import, Imported, Importer, Progress
from fedsvc.cli.output import Number, counted, emit, json_option
from fedsvc.cli.target import connect, target_option
from fedsvc.errors import ConfigurationError

#: rows that failed and are shown; --json shows all
_SHOWN = 100


@click.command("import")
@click.option(
    "--from", "database", metavar="URL", help="PieFed's database, postgresql://... or sqlite:///PATH."
)
@click.option(
    "--from-env", metavar="NAME", help="Environment variable with that URL, which may hold a password."
)
@click.option("--table", default="send_queue", show_default=True, help="Name of the table.")
@click.option("--dry-run", is_flag=True, help="Read and check every row, call nobody, change nothing.")
@click.option("--delete", "remove", is_flag=True, help="Delete rows from the table once the server has them.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("fedsvc-import.json"),
    show_default=True,
    help="File that says how far it came: another run goes on there, and tries again what failed.",
)
@click.option(
    "--patience", type=Number(0), default=300.0, show_default=True,
    help="Seconds to wait for a server that takes no more for now.",
)  # fmt: skip
@target_option
@json_option
def import_send_queue(
    database: str | None,
    from_env: str | None,
    table: str,
    dry_run: bool,
    remove: bool,
    state: Path,
    patience: float,
    target: str | None,
    as_json: bool,
) -> None:
    """Import PieFed's table send_queue, in order; what is to be sent later is sent later.

    May be interrupted and repeated: no row is accepted twice. Rows that fail are named with the reason, and
    the exit code is 1. Stop PieFed's own sending of the queue first.

    \b
    Example:
      fedsvc import --from-env PIEFED_DATABASE_URL --dry-run
    """
    if bool(database) == bool(from_env):
        raise click.UsageError("give one of --from and --from-env")
    url = database or os.environ.get(from_env or "", "")
    if not url:
        raise ConfigurationError("--from-env", f"{from_env} is not set")
    source = hashlib.sha256(f"{_without_password(url)} {table}".encode()).hexdigest()[:16]
    progress = Progress(None, source) if dry_run else Progress.load(state, source)
    from fedsvc.archive.send_queue import SendQueue  # SQLAlchemy with it, which --help does without

    queue = SendQueue.open(url, table)
    told = Imported(dry_run)
    try:
        if dry_run:
            from fedsvc.cli.rehearsal import Rehearsal  # handlers with it, and cryptography

            asyncio.run(_run(Rehearsal(queue, progress, told)))
        else:
            with connect(target) as client:
                asyncio.run(_run(Import(queue, progress, told, client, remove=remove, patience=patience)))
    finally:
        if told.through and not dry_run:
            click.echo(f"dealt with rows up to {told.through}, see {state}", err=True)
    emit(told.told(), as_json, _text(told))
    if told.failed:
        raise click.ClickException(f"{counted(len(told.failed), 'row')} failed")


async def _run(importer: Importer) -> None:
    try:
        await importer.queue.check()
        await importer.run()
    finally:
        await importer.queue.close()


def _text(told: Imported) -> str:
    lines = [
        f"{'would import' if told.dry_run else 'imported'} {told.imported:,} to "
        f"{counted(told.hosts, 'host')}, {told.scheduled:,} of them for later; "
        f"{counted(told.duplicates, 'was there already', 'were there already')}, {told.skipped:,} had "
        f"used up their retries, {len(told.failed):,} failed"
    ]
    if told.types:
        lines.append("  " + ", ".join(f"{number:,} {kind}" for kind, number in told.types.items()))
    lines += [f"  row {row['id']}: {row['reason']}" for row in told.failed[:_SHOWN]]
    if len(told.failed) > _SHOWN:
        lines.append(f"  and {len(told.failed) - _SHOWN:,} more: --json shows all")
    return "\n".join(lines)


def _without_password(url: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.password:
            return url.replace(f":{parts.password}@", "@", 1)
    return url
