"""Charts of the overview: from samples to points."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fedsvc.domain.delivery import Priority
from fedsvc.server.dashboard.charts import HEIGHT, WIDTH, Chart, overview
from fedsvc.server.dashboard.history import Latency, Sample


def sample(time_ms: int, accepted: int) -> Sample:
    depth = dict.fromkeys(Priority, 0)
    return Sample(time_ms, accepted, 0, 0, depth, 0, 0, 0, 0, Latency(None, None), 1000, 0)


def throughput(samples: Sequence[Sample]) -> Chart:
    return overview(samples, 120.0)[0]


@pytest.mark.parametrize("count", [0, 1])
def test_a_server_that_has_just_started_has_empty_charts(count: int) -> None:
    for chart in overview([sample(1000, 5)] * count, 60.0):
        assert chart.empty
        assert [line.stretches for line in chart.lines] == [[]] * len(chart.lines)
    assert throughput([sample(1000, 5)] * count).lines[0].now == "none"


def test_the_last_sample_stands_at_the_right_the_greatest_value_at_the_top() -> None:
    chart = throughput([sample(n * 10_000, accepted) for n, accepted in enumerate((0, 0, 0, 0, 300))])
    (points,) = chart.lines[0].stretches
    last = points.split(" ")[-1].split(",")
    assert (float(last[0]), float(last[1])) == (WIDTH, 0.0)
    assert float(points.split(" ")[0].split(",")[1]) == HEIGHT, "nothing was accepted"
    assert chart.lines[0].now.startswith("10"), "a mean over three"


def test_a_gap_and_a_queue_that_came_back_empty_leave_a_gap() -> None:
    times = (0, 2000, 4000, 60_000, 62_000, 64_000)
    (first, second) = throughput([sample(t, t) for t in times]).lines[0].stretches
    assert len(first.split(" ")) == len(second.split(" ")) == 2
    counts = (100, 200, 300, 0, 50, 100)
    line = throughput([sample(n * 2000, count) for n, count in enumerate(counts)]).lines[0]
    assert len(line.stretches) == 2
