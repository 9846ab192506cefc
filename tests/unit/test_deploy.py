"""Alerts, runbooks and the Grafana dashboard speak of metrics that there are, in PromQL that is one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from fedsvc.domain.delivery import DeliveryState, Reason
from tools.docs import metric_families, slug

ROOT = Path(__file__).parents[2]
RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"][
    0
]["rules"]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/fedsvc.json").read_text())
#: name as it is exported -> names of its labels
EXPORTED = {
    name: frozenset(family.labels) for family in metric_families() for name in family.exported
}  # fmt: skip


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_query_is_one_and_every_metric_in_it_is_exported(where: str, expression: str) -> None:
    promql_parser.parse(expression)
    names = set(re.findall(r"\bfedsvc_\w+", expression))
    assert names
    assert names <= set(EXPORTED), where
    for name, labels in re.findall(r"\b(fedsvc_\w+)\{([^}]*)\}", expression):
        used = set(re.findall(r"(\w+)\s*=", labels))
        assert used <= EXPORTED[name] | {"le"}, where
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        known = set().union(*(EXPORTED[name] for name in names)) | {"le", "instance"}
        assert {label.strip() for label in grouped.split(",")} <= known, where


def test_values_of_labels_in_queries_are_such_as_are_told() -> None:
    told = {
        "state": {s.name.lower() for s in DeliveryState} | {"ready", "in_flight"},
        "reason": {r.name.lower() for r in Reason},
        "priority": {"urgent", "normal", "bulk"},
    }
    seen = set()
    for where, expression in expressions():
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', expression):
            if label in told:
                assert set(values.split("|")) <= told[label], where
                seen.add(label)
    assert seen == told.keys()


def test_every_alert_leads_to_its_runbook_and_every_runbook_has_an_alert() -> None:
    text = (ROOT / "docs/runbooks.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == [rule["alert"] for rule in RULES]
    for rule in RULES:
        base = "https://fedsvc.example/docs/runbooks.md"
        assert rule["annotations"]["runbook_url"] == f"{base}#{slug(rule['alert'])}"
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert re.fullmatch(r"\d+m", rule["for"])
    for section in text.split("\n## ")[1:]:
        assert "**Look.**" in section
        assert "**Do.**" in section


def test_the_page_on_kubernetes_names_values_that_the_chart_has() -> None:
    values = yaml.safe_load((ROOT / "deploy/helm/fedsvc/values.yaml").read_text())
    page = (ROOT / "docs/kubernetes.md").read_text()
    named = re.findall(rf"`((?:{'|'.join(values)})\.[\w.]+)", page)
    assert len(named) > 10
    for name in named:
        found: Any = values
        for part in name.split("."):
            assert part in found, name
            found = found[part]


def test_thresholds_of_memory_are_those_of_the_settings() -> None:
    by_name = {rule["alert"]: rule["expr"] for rule in RULES}
    for alert, threshold in (("FedsvcMemoryIsShort", "warning"), ("FedsvcMemoryIsCritical", "critical")):
        expected = f"max(fedsvc_redis_used_bytes) > max(fedsvc_redis_{threshold}_bytes > 0)"
        assert by_name[alert] == expected, "as servers tell it, not a number"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_no_label_tells_of_a_host_an_id_or_an_instance() -> None:
    labels = set().union(*EXPORTED.values())
    assert labels <= {
        "type", "reason", "status", "state", "code", "method", "priority", "why", "version", "python",
    }  # fmt: skip
