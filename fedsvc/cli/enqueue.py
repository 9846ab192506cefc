"""`fedsvc enqueue`: hand an activity to the server."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Final

import click

from fedsvc.cli import files
from fedsvc.cli.files import read_key, read_whole
from fedsvc.cli.output import emit, json_option
from fedsvc.cli.target import connect, target_option
from fedsvc.domain.delivery import Priority

_PRIORITIES: Final = tuple(priority.name.lower() for priority in Priority)


@click.command()
@click.argument("activity", type=click.File("rb"))
@click.option("--inbox", "inboxes", multiple=True, required=True, metavar="URL", help="Where to; repeatable.")
@click.option("--key-id", required=True, metavar="URL", help="Id of the signing key, as receivers fetch it.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Private key in PEM, if the server keeps none of this id: in files, never in arguments.",
)
@click.option("--priority", type=click.Choice(_PRIORITIES), help="By the activity's type.")
@click.option("--request-id", default="", help="Names the call: repeated, it gets the first answer.")
@target_option
@json_option
def enqueue(
    activity: BinaryIO,
    inboxes: tuple[str, ...],
    key_id: str,
    key_file: Path | None,
    priority: str | None,
    request_id: str,
    target: str | None,
    as_json: bool,
) -> None:
    """Deliver the activity in file ACTIVITY (- for standard input).

    \b
    Example:
      fedsvc enqueue like.json --inbox https://lemmy.example/inbox \\
        --key-id https://me.example/u/ada#main-key --key-file ada.pem
    """
    body, pem = read_whole(activity, "ACTIVITY", files.ACTIVITY), None
    if key_file is not None:
        with key_file.open("rb") as file:
            pem = read_key(file)
    with connect(target) as client:
        if len(inboxes) == 1:
            queued = client.queue_activity(
                body,
                inboxes[0],
                private_key=pem,
                key_id=key_id,
                priority=priority,
                request_id=request_id or None,
            )
            note = " (it was accepted before)" if queued.duplicate else ""
            emit(queued, as_json, f"{queued.delivery_id}{note}")
            return
        fanned = client.fan_out(
            body, inboxes, private_key=pem, key_id=key_id, priority=priority, request_id=request_id or None
        )
        lines = [
            f"accepted {fanned.accepted}, duplicates {fanned.duplicates}, rejected {len(fanned.rejected)}"
        ]
        lines += [f"  {r.inbox}: {r.error.message}" for r in fanned.rejected]
        emit(fanned, as_json, "\n".join(lines))
        if fanned.rejected:
            were = "was" if len(fanned.rejected) == 1 else "were"
            raise click.ClickException(
                f"{len(fanned.rejected):,} of {len(inboxes):,} inboxes {were} rejected"
            )
