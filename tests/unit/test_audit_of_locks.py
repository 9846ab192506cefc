"""What is made of a report on vulnerabilities: found, none, or nothing known, which is not none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools import audit

FOUND = {"name": "tea", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2", "3"]}]}
CLEAN = {"name": "pot", "version": "1", "vulns": []}
SKIPPED = {"name": "cup", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "line"),
    [
        ([CLEAN, CLEAN], 0, "2 packages, no known vulnerability"),
        ([CLEAN, FOUND], audit.FOUND, "tea 1: PYSEC-1; fixed in: 2, 3"),
        ([SKIPPED, FOUND], audit.FOUND, "tea 1: PYSEC-1; fixed in: 2, 3"),
        ([SKIPPED, SKIPPED], audit.UNKNOWN, "0 of 2 packages are looked up"),
        ([CLEAN, SKIPPED], audit.UNKNOWN, "1 of 2 packages are looked up"),
        ([], audit.UNKNOWN, "0 of 0 packages are looked up"),
    ],
)
def test_a_report_is_understood(packages: list[dict[str, Any]], code: int, line: str) -> None:
    assert audit.verdict({"dependencies": packages}) == (code, [line])


def test_what_is_known_to_do_no_harm_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(audit.ACCEPTED, "PYSEC-1", "we pour nothing")
    assert audit.verdict({"dependencies": [FOUND]}).code == 0


def test_a_tool_that_does_not_answer_in_time_leaves_nothing_known() -> None:
    assert audit.audit(audit.LOCKS[0], 0.01) == (audit.UNKNOWN, ["no answer within 0 s"])


def test_a_tool_that_fails_is_broken_and_not_away(tmp_path: Path) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text("tea==1\n")  # without a hash
    broken = audit.audit(lock, 60)
    assert broken.code == audit.BROKEN
    assert "hash" in broken.lines[0]
