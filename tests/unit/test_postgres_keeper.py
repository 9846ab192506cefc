"""The tests' PostgreSQL ends with the tests, however they end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from servers.postgres import KEEPER

SERVER = "import time; print('runs', flush=True); time.sleep(60)"


def test_a_server_whose_starter_has_died_is_stopped_and_its_files_are_removed(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-c", KEEPER, "", str(scratch), sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "runs\n"
        told, _ = keeper.communicate(timeout=30)  # its standard input ends, as if we had died
        assert told == "", "the server, which holds that pipe too, has ended"
    assert keeper.returncode == 0
    assert not scratch.exists()
