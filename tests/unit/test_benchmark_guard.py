"""The guard tells gross regressions from noise, and the table of figures tells what was reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import documentation
from benchmarks.figures import Figure, Section, at_least, at_most
from benchmarks.guard import __main__ as guard
from benchmarks.guard import instructions, ratios
from benchmarks.guard.parts import PARTS
from benchmarks.processes import Late

ABOUT = {
    "date": "2026-11-24T12:00:00+00:00", "commit": "0123abc", "cores": 2, "cpu": "a processor",
    "memory_gib": 4, "kernel": "6.1", "python": "3.11.7", "server": "Valkey 8", "rounds": 3, "quick": False,
    "load_before": 0.1,
}  # fmt: skip


def counted_on(python: str) -> dict[str, object]:
    return {"python": python, "parts": {"yardstick": 1.0, "signing_base": 2.0}}


def test_a_part_that_became_dearer_by_more_than_a_quarter_is_named() -> None:
    reference = counted_on(instructions.python())
    assert instructions.compare({"yardstick": 1.0, "signing_base": 2.4}, reference)[1] == []
    worse = instructions.compare({"yardstick": 1.0, "signing_base": 2.6}, reference)[1]
    assert worse == ["signing_base: 1.30 times the instructions of the reference"]


def test_a_part_without_a_reference_and_one_that_is_gone_are_named() -> None:
    worse = instructions.compare({"yardstick": 1.0, "new": 1.0}, counted_on(instructions.python()))[1]
    assert worse == ["new: has no reference", "signing_base: is not measured any more"]


def test_counts_of_another_python_are_not_compared() -> None:
    lines, worse = instructions.compare({"yardstick": 9.0, "signing_base": 99.0}, counted_on("Other 1.0"))
    assert worse == []
    assert lines == ["instructions: not compared, the reference is of Other 1.0"]


def test_kinds_of_work_that_machines_move_apart_are_let_pass_further() -> None:
    reference = json.loads(guard.REFERENCE.read_text())["ratios"]
    further = {name for name in reference if ratios.tolerance(name) > ratios.TOLERANCE}
    assert further == {
        "Redis CPU of a delivery to bare's CPU",
        "server CPU of a fanned-out delivery to bare's CPU",
    }


def test_a_ratio_within_twice_the_reference_passes_and_one_beyond_does_not() -> None:
    assert ratios.compare({"cost": 1.9}, {"cost": 1.0})[1] == []
    assert ratios.compare({"cost": 2.1}, {"cost": 1.0})[1] == ["cost: 2.10 times the reference"]
    assert ratios.compare({"cost": 2.1}, {})[1] == ["cost: has no reference"]


@pytest.mark.parametrize(
    ("runs", "worse"), [([1.0], False), ([9.0, 9.0, 1.0], False), ([9.0, 8.0, 9.0], True)]
)
def test_a_ratio_must_be_bad_each_time(
    monkeypatch: pytest.MonkeyPatch, runs: list[float], worse: bool
) -> None:
    left = iter(runs)
    monkeypatch.setattr(ratios, "measure", lambda: {"cost": next(left)})
    assert bool(guard.compared({"cost": 1.0})) is worse
    assert list(left) == []


@pytest.mark.parametrize(("failures", "worse"), [(2, []), (3, ["not measured: Late('no line')"])])
def test_what_could_not_be_measured_each_time_fails(
    monkeypatch: pytest.MonkeyPatch, failures: int, worse: list[str]
) -> None:
    outcomes: list[Exception | dict[str, float]] = [Late("no line") for _ in range(failures)]
    outcomes.append({"cost": 1.0})

    def measure() -> dict[str, float]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(ratios, "measure", measure)
    assert guard.compared({"cost": 1.0}) == worse


def test_two_ratios_that_are_bad_by_turns_are_none_each() -> None:
    measured = iter([{"one": 9.0, "two": 1.0}, {"one": 1.0, "two": 9.0}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ratios, "measure", lambda: next(measured))
        assert guard.compared({"one": 1.0, "two": 1.0}) == []


def test_the_reference_has_every_part_and_every_ratio_is_positive() -> None:
    reference = json.loads(guard.REFERENCE.read_text())
    assert set(reference["instructions"]["parts"]) == {part.__name__ for part in PARTS}
    assert all(value > 0 for value in reference["ratios"].values())


def test_the_median_of_the_rounds_is_held_against_the_target() -> None:
    assert Figure("a", "us", [10, 50, 20], at_most(20)).reached is True
    assert Figure("a", "us", [10, 50, 21], at_most(20)).reached is False
    assert Figure("a", "x", [1.0, 3.0, 2.0], at_least(2.0)).reached is True
    assert Figure("a", "x", [1.0]).reached is None


def test_a_section_survives_json_and_its_table_replaces_the_one_before(tmp_path: Path) -> None:
    section = Section("worker", "Worker", [Figure("cost", "x", [1.0, 1.2], at_most(1.15), 2)], ["a note"])
    assert Section.from_json(section.as_json()) == section
    page = tmp_path / "page.md"
    page.write_text(f"before\n{documentation.BEGIN}\nold\n{documentation.END}after\n")
    for _ in range(2):
        documentation.write_docs({"about": ABOUT, "sections": [section.as_json()]}, page)
    text = page.read_text()
    assert "| cost | 1.10 x | 1.00 to 1.20 | <= 1.15 | yes |" in text
    assert text.startswith("before\n")
    assert text.endswith(f"{documentation.END}after\n")
    assert "old" not in text
    assert text.count("### Worker") == 1


def test_a_page_without_a_place_for_the_figures_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="no place"):
        documentation.write_docs({"about": ABOUT, "sections": []}, page)
    assert page.read_text() == "nothing\n"
