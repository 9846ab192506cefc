"""Puts what was measured into docs/performance.md, or a page like it: no number there is typed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from benchmarks import table
from benchmarks.figures import Section
from benchmarks.machine import ROOT

PAGE: Final = ROOT / "docs/performance.md"
BEGIN: Final = "<!-- measured: begin -->\n"
END: Final = "<!-- measured: end -->\n"


def write_docs(result: dict[str, Any], page: Path) -> None:
    """Raises ValueError if the page has no place for it."""
    before, found, rest = page.read_text().partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{page} has no place for the figures")
    sections = [Section.from_json(told) for told in result["sections"]]
    page.write_text(f"{before}{BEGIN}\n{table.markdown(result['about'], sections)}\n{END}{after}")
