"""The page of metrics, and which there are."""

from typing import Any, NamedTuple

from prometheus_client.metrics import MetricWrapperBase

from fedsvc import metrics as common_metrics
from fedsvc.server import metrics as server_metrics
from fedsvc.server import queue_metrics
from fedsvc.worker import metrics as worker_metrics
from fedsvc.worker import reactions


class Family(NamedTuple):
    name: str
    kind: str
    labels: tuple[str, ...]
    what: str
    #: which processes tell it
    where: str

    @property
    def exported(self) -> tuple[str, ...]:
        """Names of its samples."""
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(self.kind, ("",))
        return tuple(self.name + end for end in ends)


def metric_families() -> list[Family]:
    """Of all metrics of ours."""
    found = []
    modules: tuple[tuple[str, Any], ...] = (
        ("server, worker", common_metrics),
        ("server", server_metrics),
        ("worker", worker_metrics),
        ("worker", reactions),
    )
    for where, module in modules:
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                family = next(iter(metric.describe()))
                names = tuple(metric._labelnames)
                found.append(Family(family.name, family.type, names, family.documentation, where))
    for metric in queue_metrics._families(None):
        names = tuple(getattr(metric, "_labelnames", ()))
        found.append(Family(metric.name, metric.type, names, metric.documentation, "server"))
    return sorted(set(found))


def metrics_page() -> str:
    lines = [
        "# Metrics",
        "",
        "What `/metrics` of servers and workers tells Prometheus. Generated from the code by `make docs`.",
        "Labels are few: hosts are told by the API and the dashboard. Figures of the queue come from each",
        "server: take `max` over servers. A counter's name ends in `_total`, a histogram has `_bucket`,",
        "`_sum` and `_count`.",
        "",
        "| metric | kind | labels | of | what it is |",
        "|---|---|---|---|---|",
    ]
    for family in metric_families():
        labels = ", ".join(f"`{label}`" for label in family.labels) or "-"
        name = family.name + ("_total" if family.kind == "counter" else "")
        lines.append(f"| `{name}` | {family.kind} | {labels} | {family.where} | {family.what} |")
    return "\n".join(lines) + "\n"
