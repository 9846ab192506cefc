"""`fedsvc completion`, and what is completed of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from fedsvc.cli.output import emit, json_option

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def one_of(names: Callable[[], list[str]]) -> Completer:
    """Completes a value that is best one of these, in upper or lower case."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in names() if name.lower().startswith(incomplete.lower())]

    return complete


def reasons() -> list[str]:
    from fedsvc.domain.delivery import Reason

    return [reason.name for reason in Reason]


def activity_types() -> list[str]:
    from fedsvc.domain.activity_types import TYPE_NAMES

    return [name for name in TYPE_NAMES if name]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the script that makes a shell complete `fedsvc`.

    \b
    bash:  fedsvc completion bash > ~/.local/share/bash-completion/completions/fedsvc
    zsh:   fedsvc completion zsh > ~/.zfunc/_fedsvc       (a directory of fpath)
    fish:  fedsvc completion fish > ~/.config/fish/completions/fedsvc.fish
    """
    from fedsvc.cli.main import cli

    maker: Any = get_completion_class(shell)
    assert maker is not None
    script = maker(cli, {}, "fedsvc", "_FEDSVC_COMPLETE").source()
    emit({"shell": shell, "script": script}, as_json, script)
