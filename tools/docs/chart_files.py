"""What the chart has from elsewhere: its table of values, its schema's list of settings, alerts, dashboard.

A chart cannot read files outside its directory, so that alerts and dashboard are copied.
"""

import json
import re
from typing import Any, Final

from fedsvc.config import Settings
from tools.docs.checks import ROOT

CHART: Final = ROOT / "deploy/helm/fedsvc"
#: set by the chart itself, or secret, or of no use in a cluster
RESERVED: Final = frozenset(
    {
        *("REDIS_URL", "FEDSVC_REDIS_URL_FILE", "DATABASE_URL", "FEDSVC_DATABASE_URL_FILE"),
        *("FEDSVC_KEY_ENCRYPTION_KEYS", "FEDSVC_KEY_ENCRYPTION_KEYS_FILE", "FEDSVC_TOKENS"),
        *(
            "FEDSVC_TOKENS_FILE",
            "FEDSVC_TLS_CERT",
            "FEDSVC_TLS_KEY",
            "FEDSVC_TLS_CLIENT_CA",
            "FEDSVC_INSECURE",
        ),
        *("FEDSVC_LISTEN", "FEDSVC_HTTP_LISTEN", "FEDSVC_HEALTH_LISTEN", "FEDSVC_MAX_CONNECTION_AGE"),
        *("FEDSVC_PROCESSES", "FEDSVC_SHUTDOWN_GRACE", "FEDSVC_DELIVERY_TIMEOUT"),
        *("FEDSVC_TARGET", "FEDSVC_TOKEN", "FEDSVC_TOKEN_FILE", "FEDSVC_TLS_CA"),
    }
)
_TABLE: Final = "| value | default | what it is |\n|---|---|---|\n"
_LINE: Final = re.compile(r"^( *)([\w.]+):(?: (.*))?$")


def value_rows(text: str) -> list[tuple[str, str, str]]:
    """Path, default and description of every value that a comment `# -- ...` describes."""
    rows, path, described = [], [""] * 10, ""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.lstrip().startswith("# -- "):
            described = line.lstrip().removeprefix("# -- ")
        elif found := _LINE.match(line):
            depth = len(found[1]) // 2
            path[depth] = found[2]
            if described:
                indent = len(found[1]) + 1
                below = []
                for following in lines[number + 1 :]:
                    if len(following) - len(following.lstrip()) < indent or not following.strip():
                        break
                    below.append(following.strip())
                shown = found[3] or " ".join(below)
                rows.append((".".join(path[: depth + 1]), shown, described))
                described = ""
    return rows


def chart_readme() -> str:
    """The chart's README: what stands above the table is written by hand."""
    above = (CHART / "README.md").read_text().partition(_TABLE)[0]
    rows = value_rows((CHART / "values.yaml").read_text())
    return above + _TABLE + "".join(f"| `{name}` | `{default}` | {what} |\n" for name, default, what in rows)


def chart_schema() -> str:
    """The schema of values; `settings` takes the settings that there are."""
    schema: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    schema["properties"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            variable: {"type": ["string", "number", "boolean"], "description": field.description}
            for name, field in sorted(Settings.model_fields.items())
            if (variable := Settings.variable(name)) not in RESERVED
        },
    }
    return json.dumps(schema, indent=1) + "\n"


def chart_alerts() -> str:
    return (ROOT / "deploy/prometheus/alerts.yml").read_text()


def chart_dashboard() -> str:
    return (ROOT / "deploy/grafana/fedsvc.json").read_text()
