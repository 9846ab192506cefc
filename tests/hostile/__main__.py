"""Counts the hostile cases, as pytest collects them: `cd tests && python -m hostile`."""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from pathlib import Path

import pytest


class Count:
    """A plugin that notes how many cases each module has."""

    def __init__(self) -> None:
        self.cases: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.cases.update(item.path.stem.removeprefix("test_") for item in items)


def hostile_cases() -> Counter[str]:
    """Module -> cases."""
    count = Count()
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main(["--collect-only", "-q", str(Path(__file__).parent)], plugins=[count])
    if code:
        raise SystemExit("the hostile cases cannot be collected")
    return count.cases


if __name__ == "__main__":
    cases = hostile_cases()
    for module, number in sorted(cases.items()):
        print(f"{number:5} {module.replace('_', ' ')}")
    sys.exit(print(f"{sum(cases.values())} hostile cases"))
