"""The tests' Valkey ends with the tests, however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STARTER = """
import sys, time
from pathlib import Path
from servers.valkey import valkey_server
with valkey_server(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""
TESTS = Path(__file__).parents[1]


def test_a_server_whose_starter_is_killed_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path[1:]])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as starter:
        assert starter.stdout is not None
        server = int(starter.stdout.readline())
        assert b"-server" in Path(f"/proc/{server}/cmdline").read_bytes()
        starter.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while lives(server):
        assert time.monotonic() < end
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
