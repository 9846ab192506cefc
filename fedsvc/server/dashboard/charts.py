"""Lines over time, as the points of SVG polylines. Drawn on the server, so that there is something to see
without any script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from fedsvc.domain.delivery import Priority
from fedsvc.server.dashboard.history import Sample
from fedsvc.server.dashboard.words import bytes_of, milliseconds, number, rate

#: of the picture, which the page stretches
WIDTH: Final = 600
HEIGHT: Final = 150
#: points of a line, at most
_POINTS: Final = 150

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    #: its look, 1 to 5
    style: int
    #: of the polylines: one for each stretch without gaps
    stretches: list[str]
    #: the last value in words
    now: str


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    #: the greatest value, in words
    top: str
    lines: list[Line]
    #: minutes from left to right
    minutes: int
    empty: bool

    @property
    def spoken(self) -> str:
        """For who does not see it."""
        values = ", ".join(f"{line.name} {line.now}" for line in self.lines)
        return f"{self.title}, last {self.minutes} minutes. Now: {values}. Highest: {self.top}."


def overview(samples: Sequence[Sample], seconds: float) -> list[Chart]:
    """The charts of the overview, over so many seconds before the last sample."""
    samples = list(samples)
    first = [None] if samples else []  # of it alone no rate is known
    rates = [
        (name, [*first, *(_rate(a, b, field) for a, b in pairwise(samples))])
        for name, field in (("accepted", "accepted"), ("delivered", "delivered"), ("given up", "dead"))
    ]
    charts: list[tuple[str, Callable[[float], str], list[tuple[str, Values]]]] = [
        ("Throughput", rate, [(name, smooth(values)) for name, values in rates]),
        (
            "Time of an attempt",
            milliseconds,
            [
                ("median", [s.latency.median for s in samples]),
                ("95th percentile", [s.latency.slow for s in samples]),
            ],
        ),
        (
            "Deliveries that wait",
            number,
            [
                *((p.name.lower(), [s.depth.get(p, 0) for s in samples]) for p in Priority),
                ("for their host", [s.parked for s in samples]),
                ("for a retry", [s.retry for s in samples]),
            ],
        ),
        ("Longest wait for a worker", milliseconds, [("age", [s.oldest_ms for s in samples])]),
        ("Hosts down", number, [("hosts", [s.open_circuits for s in samples])]),
        ("Redis's memory", bytes_of, [("used", [s.used_memory for s in samples])]),
    ]
    times = [s.time_ms for s in samples]
    return [_chart(title, words, lines, times, seconds) for title, words, lines in charts]


def smooth(values: Values, over: int = 3) -> Values:
    """Means of so many neighbours, so that single batches do not make a saw."""
    means: list[float | None] = []
    for place in range(len(values)):
        near = [v for v in values[max(0, place - over + 1) : place + 1] if v is not None]
        means.append(sum(near) / len(near) if near and values[place] is not None else None)
    return means


def _rate(before: Sample, after: Sample, field: str) -> float | None:
    """Per second; None over a gap, or after Redis came back empty."""
    seconds = (after.time_ms - before.time_ms) / 1000
    grown = getattr(after, field) - getattr(before, field)
    return grown / seconds if 0 < seconds < 30 and grown >= 0 else None


def _chart(
    title: str,
    words: Callable[[float], str],
    lines: list[tuple[str, Values]],
    times: Sequence[int],
    seconds: float,
) -> Chart:
    top = max((v for _, values in lines for v in values if v is not None), default=0.0)
    end = times[-1] if times else 0
    drawn = [
        Line(name, style, _stretches(values, times, end, seconds, top or 1.0), _last(values, words))
        for style, (name, values) in enumerate(lines, 1)
    ]
    return Chart(title, words(top), drawn, round(seconds / 60), len(times) < 2)


def _last(values: Values, words: Callable[[float], str]) -> str:
    last = values[-1] if values else None
    return words(last) if last is not None else "none"


def _stretches(values: Values, times: Sequence[int], end: int, seconds: float, top: float) -> list[str]:
    found: list[list[str]] = [[]]
    # Of neighbours that would fall on one point of the picture, the greatest is drawn.
    step = max(1, len(values) // _POINTS)
    for place in range(len(values) - 1, -1, -step):
        near = [v for v in values[max(0, place - step + 1) : place + 1] if v is not None]
        x = WIDTH - (end - times[place]) / 1000 / seconds * WIDTH
        if x < 0:
            break
        if near:
            found[-1].append(f"{x:.1f},{HEIGHT - max(near) / top * HEIGHT:.1f}")
        elif found[-1]:
            found.append([])
    return [" ".join(points[::-1]) for points in found if len(points) > 1]
