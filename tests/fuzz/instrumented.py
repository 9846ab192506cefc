"""One parser under atheris, in a process of its own, because libFuzzer never returns:

python -m fuzz.instrumented PARSER -runs=1000 -seed=1 -max_len=4096 CORPUS
"""

from __future__ import annotations

import sys
import time

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(
    include=["fedsvc.domain", "fedsvc.handlers", "fedsvc.server", "fedsvc.queue", "fedsvc.worker.connection"]
):
    from fuzz.parsers import PARSERS


def main() -> None:
    parser = PARSERS[sys.argv[1]]

    def timed(data: bytes) -> None:
        begun = time.process_time()
        parser.check(data)
        seconds = time.process_time() - begun
        assert seconds <= parser.seconds, f"{len(data)} bytes took {seconds:.1f} s"

    atheris.Setup([sys.argv[0], *sys.argv[2:]], timed)
    atheris.Fuzz()


main()
