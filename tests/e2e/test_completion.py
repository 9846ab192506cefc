"""What a shell completes, asked of a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def completed(*words: str) -> list[str]:
    """What bash offers for the last of these words."""
    script = f"""
        eval "$(fedsvc completion bash)"
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
        COMP_CWORD={len(words) - 1}
        _fedsvc_completion fedsvc
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={"PATH": f"{BIN}:{os.environ['PATH']}"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_and_values() -> None:
    assert completed("fedsvc", "sta") == ["stats"]
    assert completed("fedsvc", "dead", "re") == ["replay"]
    assert "worker-process" not in completed("fedsvc", ""), "what is hidden is not offered"
    assert completed("fedsvc", "dead", "list", "--sin") == ["--since"]
    assert completed("fedsvc", "dead", "list", "--reason", "unav") == ["UNAVAILABLE"]
    assert completed("fedsvc", "dead", "list", "--type", "F") == ["Follow", "Flag"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_of_theirs(shell: str) -> None:
    done = subprocess.run(
        [BIN / "fedsvc", "completion", shell], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"_FEDSVC_COMPLETE={shell}_complete" in done.stdout
