"""The chart, rendered by Helm."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.matrix import Values
from deploy.programs import ROOT, helm

CHART: Final = ROOT / "deploy/helm/fedsvc"
RELEASE, NAMESPACE = "fedsvc", "federation"
Object = dict[str, Any]


def run(*arguments: str, values: Values) -> subprocess.CompletedProcess[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        command = [helm(), *arguments, "--values", file.name]
        # No cluster and no home of Helm's has a say.
        own = {"PATH": "/usr/bin:/bin", "HOME": tempfile.gettempdir(), "KUBECONFIG": "/dev/null"}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=own)


def render(values: Values) -> list[Object]:
    done = run("template", RELEASE, str(CHART), "--namespace", NAMESPACE, values=values)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def refusal(values: Values) -> str:
    """Why these values are not taken; empty if they are."""
    done = run("template", RELEASE, str(CHART), "--namespace", NAMESPACE, values=values)
    return done.stderr if done.returncode else ""


def one(objects: list[Object], kind: str, name: str) -> Object:
    """That whose name ends so."""
    [found] = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(name)]
    return found


def pods(objects: list[Object]) -> dict[str, Object]:
    """Pod specs, by component; there are some."""
    found = {
        o["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: o["spec"]["template"][
            "spec"
        ]
        for o in objects
        if o["kind"] in ("Deployment", "Job")
    }
    assert found
    return found


def environment(objects: list[Object], component: str) -> dict[str, str]:
    """What a container of the component is given."""
    [container] = pods(objects)[component]["containers"]
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        [map_] = [
            o
            for o in objects
            if o["kind"] == "ConfigMap" and o["metadata"]["name"] == source["configMapRef"]["name"]
        ]
        found |= map_["data"]
    return found | {entry["name"]: entry["value"] for entry in container.get("env", ())}


def chart_file(name: str) -> str:
    return Path(CHART, name).read_text()
