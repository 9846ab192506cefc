"""The figures as text: for a terminal, and as the table of docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.figures import Section

HEAD = ("", "median", "spread", "target", "reached")


def plain(section: Section) -> str:
    rows = [(figure.name, *figure.cells()) for figure in section.figures]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(len(HEAD))]
    lines = [f"{section.scenario}: {section.title} ({section.seconds:.0f} s)"]
    for name, median, spread, target, reached in rows:
        line = f"  {name:<{widths[0]}}  {median:>{widths[1]}}  {spread:<{widths[2]}}  {target:<{widths[3]}}"
        lines.append(f"{line}  {reached}".rstrip())
    return "\n".join([*lines, *(f"  - {note}" for note in section.notes)])


def told_of(about: dict[str, Any]) -> str:
    return (
        f"{about['date']}, commit {about['commit']}, {about['cores']} cores of {about['cpu']}, "
        f"{about['memory_gib']} GiB, Linux {about['kernel']}, Python {about['python']}, "
        f"{about['server']}, {about['rounds']} rounds"
        + (", quick" if about["quick"] else "")
        + f"; load average {about['load_before']:.1f} before the run"
    )


def markdown(about: dict[str, Any], sections: Iterable[Section]) -> str:
    lines = [told_of(about) + ".", ""]
    for section in sections:
        lines += [f"### {section.title}", "", "| | median | spread | target | reached |"]
        lines.append("|---|---:|---|---|---|")
        lines += [f"| {f.name.strip()} | {' | '.join(f.cells())} |" for f in section.figures]
        lines.append("")
        lines += [f"- {note}" for note in section.notes]
        if section.notes:
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"
