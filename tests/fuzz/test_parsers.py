"""Parsers of what strangers send, under atheris: a sound result or the one error, in bounded time."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from fuzz.parsers import PARSERS
from fuzz.running import Instrumented, instrumented

SEED = 1
INPUTS = 3000


@pytest.fixture(scope="module")
def atheris() -> Iterator[Instrumented]:
    with instrumented() as running:
        yield running


@pytest.mark.parametrize("parser", PARSERS)
def test_seeds_are_taken_as_they_are(parser: str) -> None:
    for seed in (b"", *PARSERS[parser].seeds):
        PARSERS[parser].check(seed)


@pytest.mark.parametrize("parser", PARSERS if sys.version_info < (3, 14) else ())
def test_no_input_makes_a_parser_fail(parser: str, atheris: Instrumented) -> None:
    print(f"seed {SEED}: cd tests && python -m fuzz --parser '{parser}' --inputs {INPUTS} --seed {SEED}")
    ran = atheris.run(parser, INPUTS, SEED)
    assert not ran.problem, ran.problem
    assert ran.inputs == INPUTS
