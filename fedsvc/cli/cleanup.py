"""`fedsvc cleanup`: forget in Redis what has had its time, now."""

from __future__ import annotations

import click

from fedsvc.cli.output import emit, json_option, show
from fedsvc.cli.target import connect, target_option


@click.command()
@click.option(
    "--aggressive",
    is_flag=True,
    help="Also archived outcomes that FEDSVC_OUTCOME_RETENTION would keep for a while.",
)
@target_option
@json_option
def cleanup(aggressive: bool, target: str | None, as_json: bool) -> None:
    """Forget what has had its time without waiting for workers to do it, and say what that was.

    Nothing is lost that was accepted and has not ended.

    \b
    Example:
      fedsvc cleanup --aggressive
    """
    from fedsvc.cli.figures import freed

    with connect(target) as client:
        done = client.force_cleanup(aggressive=aggressive)
    if as_json:
        entries = [{"name": c.name, "entries": c.entries} for c in done.freed]
        emit({"freed": entries, "freed_bytes": done.freed_bytes}, True, "")
    else:
        show(freed(done))
