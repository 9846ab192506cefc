"""`fedsvc keys`: signing keys that the server keeps."""

from __future__ import annotations

from typing import BinaryIO, Final

import click

from fedsvc.cli.files import read_key
from fedsvc.cli.output import Column, emit, json_option
from fedsvc.cli.pages import page_options, show_page
from fedsvc.cli.target import connect, target_option

_COLUMNS: Final = (
    Column("key id"),
    Column("algorithm", spare=1),
    Column("bits", spare=2),
    Column("registered", spare=3),
    Column("state"),
)


@click.group()
def keys() -> None:
    """Signing keys that the server keeps, so that calls need only name them."""


@keys.command()
@click.argument("key_id")
@click.option(
    "--key-file",
    required=True,
    type=click.File("rb"),
    help="Private key in PEM (- for standard input). Keys come from files only, never from arguments.",
)
@click.option("--rotate", is_flag=True, help="There must be one already.")
@target_option
@json_option
def put(key_id: str, key_file: BinaryIO, rotate: bool, target: str | None, as_json: bool) -> None:
    """Register the key KEY_ID, or replace it: what waits is signed with the new one.

    \b
    Example:
      fedsvc keys put https://me.example/u/ada#main-key --key-file ada.pem
    """
    pem = read_key(key_file)
    with connect(target) as client:
        key = client.rotate_key(key_id, pem) if rotate else client.put_key(key_id, pem)
    emit(key, as_json, f"{key.key_id}: {key.algorithm} of {key.bits} bits, fingerprint {key.fingerprint}")


@keys.command("list")
@click.option("--origin", default="", metavar="HOST", help="Only those of this instance.")
@page_options(100)
@target_option
@json_option
def list_(origin: str, limit: int, page_token: str, target: str | None, as_json: bool) -> None:
    """List registered keys; nothing secret is shown."""
    with connect(target) as client:
        page = client.list_keys(origin=origin, page_size=limit, page_token=page_token)
    show_page(
        page,
        as_json,
        _COLUMNS,
        (
            (
                key.key_id,
                key.algorithm.lower(),
                str(key.bits),
                key.create_time,
                "leaving" if key.deletion_pending else "in use",
            )
            for key in page.keys
        ),
        none="There are no registered keys.",
    )


@keys.command()
@click.argument("key_id")
@click.option(
    "--when-unused",
    is_flag=True,
    help="If deliveries need it, delete it when they have ended. Runs of schedules that sign with it "
    "fail then.",
)
@target_option
@json_option
def delete(key_id: str, when_unused: bool, target: str | None, as_json: bool) -> None:
    """Forget the key KEY_ID. Refused while deliveries need it, or a schedule signs with it."""
    with connect(target) as client:
        deferred = client.delete_key(key_id, when_unused=when_unused)
    text = f"{key_id} is deleted once nothing needs it" if deferred else f"{key_id} is deleted"
    emit({"key_id": key_id, "deferred": deferred}, as_json, text)
