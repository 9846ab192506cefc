"""What a scenario measured, and what is wanted of it."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    limit: float
    at_least: bool = False

    def reached(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:,g}"


def at_least(limit: float) -> Target:
    return Target(limit, at_least=True)


def at_most(limit: float) -> Target:
    return Target(limit)


@dataclass(frozen=True)
class Figure:
    """One line of the table: a value of each round; their median counts."""

    name: str
    unit: str
    values: list[float]
    target: Target | None = None
    digits: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """None if nothing is wanted of it."""
        return None if self.target is None else self.target.reached(self.median)

    def cells(self) -> tuple[str, str, str, str]:
        """Median, spread, target, whether it was reached."""
        shown, low, high = (
            f"{value:,.{self.digits}f}" for value in (self.median, min(self.values), max(self.values))
        )
        spread = f"{low} to {high}" if len(self.values) > 1 else ""
        reached = {None: "", True: "yes", False: "NO"}[self.reached]
        return f"{shown} {self.unit}".rstrip(), spread, str(self.target or ""), reached

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "median": self.median, "reached": self.reached}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Figure:
        target = told["target"]
        return cls(
            told["name"], told["unit"], told["values"], Target(**target) if target else None, told["digits"]
        )


@dataclass
class Section:
    """All that one scenario has to tell. `notes` say what a reader of the figures must know of this run."""

    scenario: str
    title: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario,
            "title": self.title,
            "seconds": round(self.seconds, 1),
            "figures": [figure.as_json() for figure in self.figures],
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Section:
        figures = [Figure.from_json(figure) for figure in told["figures"]]
        return cls(told["scenario"], told["title"], figures, told["notes"], told["seconds"])


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Round by round, so that what the machine did meanwhile is in both."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]
