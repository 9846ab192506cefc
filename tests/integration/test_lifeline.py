"""A process with a lifeline ends when its parent has died, and starts well beside threads of gRPC."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedsvc import lifeline

LIFELINE = [sys.executable, "-I", "-S", lifeline.__file__]
#: tells its pid, then waits to be ended
WAITS = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
#: starts what is named with a lifeline to itself, tells its pid, and waits
STARTS = """
import os, subprocess, sys, time
subprocess.Popen([*sys.argv[1:5], str(os.getpid()), *sys.argv[5:]])
time.sleep(60)
"""
#: of subprocess
ARGUMENT = "preexec" + "_fn="

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")


def test_it_becomes_the_program_under_the_same_pid() -> None:
    with subprocess.Popen(
        [*LIFELINE, str(os.getpid()), *WAITS], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM


def test_it_ends_when_its_parent_is_killed() -> None:
    command = [sys.executable, "-c", STARTS, *LIFELINE, *WAITS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.kill()
        # the child has the other end of the pipe: it is read to its end when nobody is left
        assert parent.stdout.read() == ""


def test_one_whose_parent_died_before_it_asked_ends_at_once() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(20)
    process = subprocess.run([*LIFELINE, str(gone.pid), *WAITS], capture_output=True, text=True, timeout=20)
    assert (process.returncode, process.stdout) == (-signal.SIGTERM, "")


def test_a_command_takes_a_lifeline_too() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(20)
    command = [sys.executable, "-m", "fedsvc", "server", "--parent", str(gone.pid)]
    assert subprocess.run(command, capture_output=True, timeout=20).returncode == -signal.SIGTERM


@pytest.mark.parametrize("folder", ["fedsvc", "benchmarks", "tests", "tools"])
def test_nothing_is_done_between_fork_and_exec(folder: str) -> None:
    """`preexec_fn` makes subprocess fork with all handlers of threads that are in gRPC."""
    root = Path(__file__).parents[2]
    uses = [
        str(path.relative_to(root))
        for path in (root / folder).rglob("*.py")
        if "node_modules" not in path.parts and "preexec_fn=" in path.read_text()
    ]
    assert uses == (
        [f"tests/{Path(__file__).parent.name}/{Path(__file__).name}"] if folder == "tests" else []
    )
