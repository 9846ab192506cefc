"""Parsers under atheris, in a process of their own, because libFuzzer never returns:

python -m fuzz.instrumented

To import everything with atheris's marks takes seconds. So it is done once, and each parser has a fork of
this process. A line of standard input is a JSON list: a file for what is printed, the parser, and libFuzzer's
arguments. A line of standard output is how it ended.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(
    include=["fedsvc.domain", "fedsvc.handlers", "fedsvc.server", "fedsvc.queue", "fedsvc.worker.connection"]
):
    from fuzz.parsers import PARSERS


def fuzz(parser: str, arguments: Sequence[str]) -> None:
    chosen = PARSERS[parser]

    def timed(data: bytes) -> None:
        begun = time.process_time()
        chosen.check(data)
        seconds = time.process_time() - begun
        assert seconds <= chosen.seconds, f"{len(data)} bytes took {seconds:.1f} s"

    atheris.Setup([sys.argv[0], *arguments], timed)
    atheris.Fuzz()


def main() -> None:
    for line in sys.stdin:
        output, parser, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            fuzz(parser, arguments)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


main()
