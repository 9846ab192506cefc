"""One parser under atheris, in a process of its own, because libFuzzer never returns:

python -m fuzz.instrumented PARSER -runs=1000 -seed=1 -max_len=4096 CORPUS
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(
    include=["fedsvc.domain", "fedsvc.handlers", "fedsvc.server", "fedsvc.queue"]
):
    from fuzz.parsers import PARSERS


def main() -> None:
    check = PARSERS[sys.argv[1]].check
    atheris.Setup([sys.argv[0], *sys.argv[2:]], check)
    atheris.Fuzz()


main()
