"""`fedsvc tokens`: what callers show the server."""

from __future__ import annotations

import click

from fedsvc.cli.output import emit, json_option


@click.group()
def tokens() -> None:
    """Tokens by which the server knows its callers."""


@tokens.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(["deliver", "operate", "keys"]),
    help="What it may do; repeatable.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    required=True,
    metavar="HOST",
    help="Instance that it may act for: the host of its key ids, * for all; repeatable.",
)
@json_option
def new(name: str, scopes: tuple[str, ...], origins: tuple[str, ...], as_json: bool) -> None:
    """Make a token for the caller NAME. It is shown once, and kept nowhere.

    \b
    Example:
      fedsvc tokens new piefed --scope deliver --scope keys --origin social.example
    """
    from fedsvc.server.tokens import entry_text, new_token, parse_caller

    try:
        caller = parse_caller(name, "+".join(scopes), "*" if "*" in origins else "+".join(origins))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    token = new_token()
    entry = entry_text(caller, token)
    text = f"token, for the caller:\n  {token}\nentry, for FEDSVC_TOKENS of the server:\n  {entry}"
    emit({"token": token, "entry": entry}, as_json, text)
