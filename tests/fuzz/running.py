"""Has parsers run under atheris, and says how it went."""

from __future__ import annotations

import json
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fuzz.parsers import PARSERS

#: seconds that one input may take
LONGEST = 10
#: megabytes that a parser's process may take up, atheris's own among them
MOST_MEMORY = 1024
#: seconds that all inputs of a parser may take
PATIENCE = 3600
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ran:
    parser: str
    inputs: int
    #: what a developer needs to see, empty if all went well
    problem: str


class Instrumented:
    """What imports parsers once, with atheris's marks, and runs one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, parser: str, inputs: int, seed: int) -> Ran:
        """`inputs` inputs, made from the seeds, which follow from `seed`."""
        chosen = PARSERS[parser]
        with tempfile.TemporaryDirectory(prefix="fedsvc-fuzz-") as scratch:
            corpus, printed = Path(scratch) / "corpus", Path(scratch) / "printed"
            corpus.mkdir()
            for number, seeded in enumerate(chosen.seeds):
                (corpus / str(number)).write_bytes(seeded)
            code = self._ended(
                str(printed), parser, f"-runs={inputs}", f"-seed={seed}", f"-max_len={chosen.longest}",
                f"-timeout={LONGEST}", f"-rss_limit_mb={MOST_MEMORY}", f"-artifact_prefix={scratch}/",
                str(corpus),
            )  # fmt: skip
            told = printed.read_text(errors="replace") if printed.exists() else ""
            ran = re.search(r"Done (\d+) runs", told)
            if code == "0" and ran:
                return Ran(parser, int(ran[1]), "")
            guilty = [
                f"{path.name}: {path.read_bytes()!r}"
                for path in Path(scratch).iterdir()
                if path.name.startswith(("crash-", "timeout-", "oom-"))
            ]
            where = told.find("=== Uncaught Python exception")
            shown = told[where:][:3000] if where >= 0 else told[-3000:]
            return Ran(parser, 0, "\n".join([f"it ended with {code or 'nothing'}", *guilty, shown]))

    def _ended(self, *work: str) -> str:
        """The exit code; empty if all has ended, or lasts too long."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(json.dumps(work), file=stdin, flush=True)
        # It answers once for each line: nothing is left in the buffer.
        readable, _, _ = select.select([stdout], [], [], PATIENCE)
        if not readable:
            self._process.kill()
        return stdout.readline().strip()


@contextmanager
def instrumented() -> Iterator[Instrumented]:
    with subprocess.Popen(
        [sys.executable, "-m", "fuzz.instrumented"],
        cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            yield Instrumented(process)
        finally:
            process.kill()
