"""The page of the command line."""

import click

from fedsvc.cli.main import cli


def cli_page() -> str:
    lines = [
        "# Command line",
        "",
        "Generated from the commands themselves by `make docs`. Settings are environment variables: see",
        "[Settings](settings.md). `--json` prints what programs read; without it, what people read.",
        "",
        "| exit code | means |",
        "|---|---|",
        "| 0 | done; of what runs until it is stopped: stopped in order by SIGTERM, SIGINT or Ctrl-C |",
        "| 1 | not done, and one line on standard error says why. Also: `doctor` found something wrong, "
        "`demo` counted something lost, a replay or purge ended badly, a question was answered with no, "
        "Ctrl-C |",
        "| 2 | called wrongly: no such command or option, or a value that cannot be |",
        "",
        "Shells complete commands, options, and values such as reasons and types of activity, once they are "
        "told:",
        "`fedsvc completion bash > ~/.local/share/bash-completion/completions/fedsvc` (or `zsh`, `fish`).",
    ]

    def describe(command: click.Command, name: str, parent: click.Context | None) -> None:
        if command.hidden:
            return
        context = context_of(command, name, parent)
        lines.extend(["", f"## {path_of(context)}", "", "```", command.get_help(context), "```"])
        if isinstance(command, click.Group):
            for inner_name in command.list_commands(context):
                inner = command.get_command(context, inner_name)
                assert inner is not None
                describe(inner, inner_name, context)

    describe(cli, "fedsvc", None)
    return "\n".join(lines) + "\n"


def context_of(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    """As when it is called: a command has something of its parents, such as -h."""
    return click.Context(command, parent, name, **{**command.context_settings, "terminal_width": 100})


def path_of(context: click.Context) -> str:
    """The command as it is typed, without what its parents may take between."""
    name = context.info_name or ""
    return name if context.parent is None else f"{path_of(context.parent)} {name}"
