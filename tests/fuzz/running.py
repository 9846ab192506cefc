"""Starts a parser under atheris, and says how it went."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fuzz.parsers import PARSERS

#: seconds that one input may take
LONGEST = 10
#: megabytes that a parser's process may take up, atheris's own among them
MOST_MEMORY = 1024
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ran:
    parser: str
    inputs: int
    #: what a developer needs to see, empty if all went well
    problem: str


def run(parser: str, inputs: int, seed: int) -> Ran:
    """`inputs` inputs, made from the seeds, which follow from `seed`."""
    chosen = PARSERS[parser]
    with tempfile.TemporaryDirectory(prefix="fedsvc-fuzz-") as scratch:
        corpus = Path(scratch) / "corpus"
        corpus.mkdir()
        for number, seeded in enumerate(chosen.seeds):
            (corpus / str(number)).write_bytes(seeded)
        done = subprocess.run(
            [
                sys.executable, "-m", "fuzz.instrumented", parser, f"-runs={inputs}", f"-seed={seed}",
                f"-max_len={chosen.longest}", f"-timeout={LONGEST}", f"-rss_limit_mb={MOST_MEMORY}",
                f"-artifact_prefix={scratch}/", str(corpus),
            ],
            cwd=TESTS, capture_output=True, timeout=3600,
        )  # fmt: skip
        told = (done.stdout + done.stderr).decode(errors="replace")
        ran = re.search(r"Done (\d+) runs", told)
        if done.returncode == 0 and ran:
            return Ran(parser, int(ran[1]), "")
        guilty = [
            f"{path.name}: {path.read_bytes()!r}"
            for path in Path(scratch).iterdir()
            if path.name.startswith(("crash-", "timeout-", "oom-"))
        ]
        where = told.find("=== Uncaught Python exception")
        return Ran(parser, 0, "\n".join([*guilty, told[where:][:3000] if where >= 0 else told[-3000:]]))
