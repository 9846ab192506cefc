"""All commands, and what they have in common: errors are one line on standard error and exit code 1."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import TracebackType
from typing import Any, Final, NoReturn

import click

from fedsvc import __version__
from fedsvc.errors import FedsvcError

#: command -> module and name in it; imported when the command is run
_COMMANDS: Final = {
    "dev": ("run", "dev"),
    "server": ("run", "server"),
    "worker": ("run", "worker"),
    "worker-process": ("run", "worker_process"),
    "migrate": ("run", "migrate"),
    "demo": ("run", "demo"),
    "doctor": ("doctor", "doctor"),
    "health": ("health", "health"),
    "enqueue": ("enqueue", "enqueue"),
    "deliveries": ("deliveries", "deliveries"),
    "stats": ("stats", "stats"),
    "cleanup": ("cleanup", "cleanup"),
    "hosts": ("hosts", "hosts"),
    "dead": ("dead", "dead"),
    "schedules": ("schedules", "schedules"),
    "keys": ("keys", "keys"),
    "tokens": ("tokens", "tokens"),
    "audit": ("audit", "audit"),
    "import": ("send_queue", "import_send_queue"),
    "completion": ("completion", "completion"),
}


class Commands(click.Group):
    """Imports a command when it is needed, so that `--help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, name = place
        command = getattr(importlib.import_module(f"fedsvc.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fedsvc")
def cli() -> None:
    """Reliable outgoing federation: queues, signs, delivers, retries and archives ActivityPub activities.

    Settings are environment variables; see docs/reference/settings.md.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 if it did its work, 1 if not, 2 if it was called wrongly."""
    sys.excepthook = _tell_bug
    _complete_streams()
    try:
        code: Any = cli.main(arguments, prog_name="fedsvc", standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("fedsvc: interrupted\n")  # maybe in the middle of an import: no other now
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)
    except FedsvcError as error:
        _fail(str(error))
    except OSError as error:
        _give_up_output()
        problem = error.strerror or str(error) or type(error).__name__
        _fail(f"{error.filename}: {problem}" if error.filename else problem)
    except Exception as error:
        if type(error).__module__.startswith("fedsvc_client"):
            _fail(_client_error(error))
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _complete_streams() -> None:
    """A standard stream that is closed leads nowhere: it would be None, and its number a connection's."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _give_up_output() -> None:
    """What cannot be written, as the disk is full, Python would try to write again at exit, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _client_error(error: Any) -> str:
    violations = "; ".join(f"{v.field}: {v.description}" for v in error.violations)
    return violations or str(error)


def _tell_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback of an error that nobody expected: its messages may quote secrets."""
    from fedsvc.logs import redact_text

    sys.stderr.write(redact_text("".join(traceback.format_exception(kind, error, trace))))


def _fail(text: str) -> NoReturn:
    from fedsvc.logs import redact_text

    # what it quotes may be anybody's, and the terminal is the operator's
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(redact_text(text).split()))
    sys.stderr.write(f"fedsvc: {line}\n")
    sys.exit(1)
