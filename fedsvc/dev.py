"""`fedsvc dev`: everything on one machine, in one data directory, from one command."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from fedsvc.brought import said
from fedsvc.children import Child
from fedsvc.config import Settings
from fedsvc.config_files import check_authorities
from fedsvc.config_types import Address
from fedsvc.domain.keys import KeyCipher
from fedsvc.embedded import DataDir, EmbeddedServer
from fedsvc.errors import ConfigurationError, FedsvcError
from fedsvc.ports import check_ports
from fedsvc.supervisor import Supervisor

log = structlog.get_logger(__name__)

#: seconds for everything to be ready
_PATIENCE: Final = 90.0
#: seconds beyond the worker's own grace until it is killed
_EXTRA_GRACE: Final = 10.0
#: seconds that everything gets to end when Ctrl-C is pressed again
_LAST_GRACE: Final = 2.0


class NotReady(FedsvcError):
    """A part of `fedsvc dev` did not come up."""


def run(data_dir: Path, settings: Settings, announce: Callable[[str], None]) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. `announce` is told the line that says it serves.

    Raises ConfigurationError, EmbeddedFailed, ArchiveUnavailable, NotReady.
    """
    return asyncio.run(_run(data_dir, settings, announce))


async def _run(path: Path, settings: Settings, announce: Callable[[str], None]) -> int:
    data_dir = DataDir(path)
    data_dir.open()
    valkey: EmbeddedServer | None = None
    supervisor: Supervisor | None = None
    try:
        check_ports(settings)  # after the directory: a second `fedsvc dev` finds both taken
        settings = _completed(settings, data_dir.path)
        check_authorities("FEDSVC_CA_FILE", settings.ca_file)
        supervisor = Supervisor(settings.shutdown_grace + _EXTRA_GRACE, _LAST_GRACE)
        supervisor.handle_signals(partial(_say_what_is_waited_for, settings.shutdown_grace))
        if not said("redis_url"):
            valkey = EmbeddedServer(data_dir.path)
            await valkey.start()
            if supervisor.stopping:
                return 0
            supervisor.keep("valkey", valkey.ended, valkey.start)
            settings = settings.model_copy(update={"redis_url": valkey.url})
        environment = _environment(settings)
        server, worker = await asyncio.gather(
            supervisor.add("server", lambda: Child.start("server", ("server", "--reflection"), environment)),
            supervisor.add("worker", lambda: Child.start("worker", _WORKER, environment)),
        )
        if not said("database_url"):
            await asyncio.to_thread(_migrate, settings)
        await _ready(supervisor, server, worker)
        if not supervisor.stopping:
            grpc, http = server.status["grpc"], server.status["http"]
            # Should the server have to be started anew, it is where its callers know it.
            environment |= {"FEDSVC_LISTEN": grpc, "FEDSVC_HTTP_LISTEN": http}
            data_dir.listening(grpc)
            announce(f"fedsvc is ready: grpc={grpc} http={http}")
        await supervisor.wait()
        return await supervisor.end()
    finally:
        if supervisor is not None:
            await supervisor.end()
        if valkey is not None:
            await valkey.stop()
        data_dir.close()


_WORKER: Final = ("worker", "--http-listen", str(Address("127.0.0.1", 0)))


async def _ready(supervisor: Supervisor, *children: Child) -> None:
    """Wait until all are ready or we are told to stop. Raises NotReady once one of them cannot be."""
    deadline = asyncio.get_running_loop().time() + _PATIENCE
    stopped = asyncio.create_task(supervisor.wait())
    waiting = {stopped, *(asyncio.create_task(_one_ready(child, deadline)) for child in children)}
    try:
        while waiting != {stopped}:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if supervisor.stopping:
                return
            for task in done:
                task.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _one_ready(child: Child, deadline: float) -> None:
    if not await child.wait_ready(deadline):
        raise NotReady(
            f"the {child.name} does not become ready: {child.status.get('problems') or 'it ended'}"
        )


def _completed(settings: Settings, data_dir: Path) -> Settings:
    """With what `dev` brings where the environment says nothing."""
    brought: dict[str, str] = {}
    if not said("database_url"):
        brought["database_url"] = f"sqlite:///{data_dir / 'archive.db'}"
    if not said("key_encryption_keys_file"):
        brought["key_encryption_keys_file"] = str(key_file(data_dir))
    return settings.model_copy(update=brought)


def key_file(data_dir: Path) -> Path:
    """The key encryption keys of this data directory, made at first start. Raises ConfigurationError."""
    path = data_dir / "key-encryption-keys"
    if path.exists():
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigurationError(
                "FEDSVC_KEY_ENCRYPTION_KEYS_FILE", f"others can read {path}: run chmod 600 on it"
            )
        return path
    # Never half a file under the final name; the lock of the data directory keeps others out.
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(KeyCipher.generate() + "\n")
        file.flush()
        os.fsync(descriptor)  # what it encrypts may outlive the machine's power
    fresh.replace(path)
    return path


def _migrate(settings: Settings) -> None:
    from fedsvc.archive.migrate import upgrade  # half a second of imports, while the children start

    upgrade(settings)


def _environment(settings: Settings) -> dict[str, str]:
    """Of the children: ours, with the settings spelled out."""
    names = {Settings.variable(field) for field in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    told = {name: value for name, value in settings.to_environment().items() if value}
    return {**kept, **told, "PYTHONUNBUFFERED": "1"}


def _say_what_is_waited_for(grace: float) -> None:
    sys.stderr.write(
        f"fedsvc: waiting for what is on its way, up to {grace:g} s; Ctrl-C again to leave it "
        "(the next start finds it)\n"
    )
    sys.stderr.flush()


def say(line: str) -> None:
    """To standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
