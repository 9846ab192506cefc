"""What `make` does where an environment is half made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: stands for the Python that makes environments, and says with what it was called
RECORDER = '#!/bin/sh\necho "$@" >> calls\n[ "$2" != venv ]\n'


def test_an_environment_without_pip_is_made_anew(tmp_path: Path) -> None:
    """As Debian leaves it where python3-venv is missing: once it is there `make setup` has to go on."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements/dev.lock", "pyproject.toml", "clients/python/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    half = [sys.executable, "-m", "venv", "--without-pip", ".venv"]
    subprocess.run(half, cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "python").write_text(RECORDER)
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["make", "setup", "PYTHON=./python"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "-m venv .venv"
