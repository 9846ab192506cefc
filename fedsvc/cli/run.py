"""Commands that run something: dev, server, worker, migrate, demo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fedsvc.cli.output import emit, json_option
from fedsvc.config import Settings
from fedsvc.errors import FedsvcError
from fedsvc.lifeline import die_with
from fedsvc.ports import check_ports

_LISTEN = click.option("--listen", metavar="HOST:PORT", help="Where to speak gRPC (FEDSVC_LISTEN).")
_HTTP_LISTEN = click.option(
    "--http-listen",
    metavar="HOST:PORT",
    help="Where to answer /healthz, /readyz, /metrics (FEDSVC_HTTP_LISTEN).",
)
_INSECURE = click.option(
    "--insecure",
    is_flag=True,
    help="Listen beyond this machine without tokens or TLS (FEDSVC_INSECURE): something else guards it.",
)
_STATUS_FD = click.option("--status-fd", type=int, hidden=True)
_PARENT = click.option(
    "--parent",
    type=int,
    hidden=True,
    expose_value=False,
    callback=lambda _context, _option, parent: None if parent is None else die_with(parent),
)
_LOG_JSON = click.option(
    "--json", "as_json", is_flag=True, help="Log in JSON (FEDSVC_LOG_FORMAT); nothing else is printed."
)


def _range_of(setting: str) -> click.IntRange:
    """What the setting allows: an option refuses all else as something that was called wrongly."""
    bounds = {
        name: getattr(bound, name)
        for bound in Settings.model_fields[setting].metadata
        for name in ("ge", "le")
        if hasattr(bound, name)
    }
    return click.IntRange(bounds.get("ge"), bounds.get("le"))


def _status(fd: int | None) -> Any:
    from fedsvc.children import status_writer

    return None if fd is None else status_writer(fd)


@contextmanager
def _telling(status: Any) -> Iterator[Any]:
    """Whoever started us learns why we end, and need not look for it among the lines of the log."""
    try:
        yield status
    except FedsvcError as error:
        from fedsvc.logs import redact_text

        if status is not None:
            status({"ready": False, "problems": redact_text(str(error))})
        raise


def _log_format(as_json: bool) -> str | None:
    """None leaves it to the settings."""
    return "json" if as_json else None


def _check_handlers() -> None:
    """Each process loads them for itself; where one starts others, an error should end it at once. Raises
    ConfigurationError."""
    from fedsvc.handlers.registry import Registry

    Registry.load()


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("fedsvc-data"),
    show_default=True,
    help="Holds queue, archive and key; made if it is not there.",
)
@_LISTEN
@_HTTP_LISTEN
@_INSECURE
@click.option("--json", "as_json", is_flag=True, help="Announce readiness as JSON.")
def dev(data_dir: Path, listen: str | None, http_listen: str | None, insecure: bool, as_json: bool) -> int:
    """Run everything: server, worker, an embedded Valkey and an SQLite archive.

    Prints one line when it serves. Ctrl-C stops it, once what is on its way has been answered; a second one
    does not wait for that. Started again on the same directory, it goes on with the same queue.

    \b
    Example:
      fedsvc dev --data-dir ./fedsvc-data --listen 127.0.0.1:50051
    """
    import json

    from fedsvc import dev as everything
    from fedsvc import logs

    settings = Settings.from_environment(listen=listen, http_listen=http_listen, insecure=insecure or None)
    logs.configure(settings, "dev")
    _check_handlers()

    def announce(line: str) -> None:
        told = dict(part.split("=", 1) for part in line.split(": ", 1)[1].split())
        everything.say(json.dumps({"ready": True, **told}) if as_json else line)

    return everything.run(data_dir, settings, announce)


@click.command()
@_LISTEN
@_HTTP_LISTEN
@click.option("--reflection", is_flag=True, help="Let callers ask for the contract (gRPC reflection).")
@_INSECURE
@_LOG_JSON
@_STATUS_FD
@_PARENT
def server(
    listen: str | None,
    http_listen: str | None,
    reflection: bool,
    insecure: bool,
    as_json: bool,
    status_fd: int | None,
) -> int:
    """Run the gRPC front. Needs REDIS_URL, DATABASE_URL and key encryption keys."""
    from fedsvc import logs

    with _telling(_status(status_fd)) as status:
        settings = Settings.from_environment(
            listen=listen, http_listen=http_listen, insecure=insecure or None, log_format=_log_format(as_json)
        )
        settings.key_encryption_secret()
        logs.configure(settings, "server")
        check_ports(settings)
        from fedsvc.server.app import run

        return run(settings, status=status, reflect=reflection)


@click.command()
@click.option(
    "--processes", type=_range_of("processes"), help="How many worker processes (FEDSVC_PROCESSES)."
)
@_HTTP_LISTEN
@_LOG_JSON
@_STATUS_FD
@_PARENT
def worker(processes: int | None, http_listen: str | None, as_json: bool, status_fd: int | None) -> int:
    """Run workers, which sign and deliver. Needs REDIS_URL, DATABASE_URL and key encryption keys."""
    from fedsvc import logs

    with _telling(_status(status_fd)) as status:
        settings = Settings.from_environment(
            processes=processes, http_listen=http_listen, log_format=_log_format(as_json)
        )
        settings.key_encryption_secret()
        logs.configure(settings, "worker")
        _check_handlers()
        from fedsvc.worker.pool import run

        return run(settings, status=status)


@click.command("worker-process", hidden=True)
@_STATUS_FD
@_PARENT
def worker_process(status_fd: int | None) -> int:
    """One worker process; `fedsvc worker` starts these."""
    from fedsvc import logs

    settings = Settings.from_environment()
    logs.configure(settings, "worker-process")
    from fedsvc.worker.app import run

    return run(settings, status=_status(status_fd))


@click.command()
@json_option
def migrate(as_json: bool) -> None:
    """Bring the archive's database (DATABASE_URL) up to date. Safe to run at any time, and twice."""
    from fedsvc.archive.migrate import upgrade

    revision = upgrade(Settings.from_environment())
    emit({"revision": revision}, as_json, f"The archive is at revision {revision}.")


@click.command()
@json_option
def demo(as_json: bool) -> int:
    """Deliver a thousand signed activities to 200 local inboxes, some troublesome, and check all."""
    from fedsvc.demo.app import run

    return run(as_json)
