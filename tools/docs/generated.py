"""Which pages are made from the code, and by what."""

from collections.abc import Callable
from typing import Final

from tools.docs.activity_types_page import handlers_page
from tools.docs.api_page import api_page
from tools.docs.chart_files import chart_alerts, chart_dashboard, chart_readme, chart_schema
from tools.docs.checks import ROOT
from tools.docs.cli_page import cli_page
from tools.docs.client_page import client_page
from tools.docs.log_page import log_page
from tools.docs.metrics_page import metrics_page
from tools.docs.settings_page import settings_page

GENERATED: Final[dict[str, Callable[[], str]]] = {
    "docs/reference/metrics.md": metrics_page,
    "docs/reference/log-events.md": log_page,
    "docs/reference/settings.md": settings_page,
    "docs/reference/cli.md": cli_page,
    "docs/reference/activity-types.md": handlers_page,
    "docs/reference/api.md": api_page,
    "docs/reference/python-client.md": client_page,
    "deploy/helm/fedsvc/README.md": chart_readme,
    "deploy/helm/fedsvc/values.schema.json": chart_schema,
    "deploy/helm/fedsvc/files/alerts.yml": chart_alerts,
    "deploy/helm/fedsvc/files/fedsvc.json": chart_dashboard,
}


def stale() -> list[str]:
    """Generated pages that are not what would be generated now."""
    return [
        name
        for name, make in GENERATED.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text() != make()
    ]
