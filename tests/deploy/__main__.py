"""Everything that `make chart` checks beyond the tests: `cd tests && python -m deploy`.

Renders the chart with every set of values and with the product of the axes, holds each object against the
schema of its kind, and scans what was rendered, Dockerfile and compose file for what policies forbid. Prints
counts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from deploy.matrix import MONITORED, SETS, merged, product
from deploy.policies import EXEMPT, HADOLINT_IGNORED
from deploy.programs import PATIENCE, ROOT, checkers
from deploy.rendering import Object, render


def canaries(objects: list[Object]) -> list[Object]:
    """Of each kind one with a field that there is not: each has to be found."""
    first = {f"{found['apiVersion']}/{found['kind']}": found for found in reversed(objects)}
    return [deepcopy(found) | {"metadata": {"name": "canary"}, "bogus": 1} for found in first.values()]


def check(objects: list[Object]) -> dict[str, Any]:
    done = subprocess.run(
        [str(checkers() / "python"), str(Path(__file__).with_name("objects.py"))],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if done.returncode:
        sys.exit(f"the objects cannot be checked: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def validate() -> None:
    sets = SETS | product()
    objects, times = [], []
    for values in sets.values():
        begun = time.perf_counter()
        objects += render(values)
        times.append(time.perf_counter() - begun)
    told = check(objects)
    planted = canaries(objects)
    found = {problem.partition(" canary: ")[0] for problem in check(planted)["problems"]}
    if overlooked := {o["kind"] for o in planted} - found:
        sys.exit(f"a field that there is not was not found in {overlooked}")
    kinds = {f"{found['apiVersion']}/{found['kind']}" for found in objects}
    print(
        f"schemas: {len(sets)} sets of values, {len(objects)} objects of {len(kinds)} kinds "
        f"({told['distinct']} distinct), {len(told['problems'])} problems; a rendering takes "
        f"{statistics.median(times) * 1000:.0f} ms"
    )
    if told["problems"]:
        sys.exit("\n".join(sorted(set(told["problems"]))))


def checkov(name: str, framework: str, directory: Path) -> None:
    """Scan a directory. Exits if a policy is broken that is not exempt, or one is exempt for nothing."""
    done = subprocess.run(
        [
            *(str(checkers() / "checkov"), "--directory", str(directory), "--framework", framework),
            *("--output", "json", "--quiet", "--compact", "--skip-download"),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=directory,
    )
    try:
        told: Any = json.loads(done.stdout)
        passed, failed = told["summary"]["passed"], told["results"]["failed_checks"]
    except (ValueError, KeyError, TypeError):
        sys.exit(f"checkov cannot scan {name}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    broken = {check["check_id"]: check["check_name"] for check in failed}
    exempt = EXEMPT[name]
    print(f"policies, {name}: {passed} checks passed, {len(failed)} failed, of {len(exempt)} exempt policies")
    wrong = [f"{id}: {what}" for id, what in broken.items() if id not in exempt]
    wrong += [f"{id} is exempt for nothing" for id in exempt.keys() - broken.keys()]
    if wrong:
        sys.exit("\n".join(wrong))


def hadolint() -> None:
    ignored = [part for rule in HADOLINT_IGNORED for part in ("--ignore", rule)]
    command = [str(checkers() / "hadolint"), *ignored, str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    print(f"hadolint, Dockerfile: exit code {done.returncode}, {len(ignored) // 2} rules ignored")
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def compose() -> None:
    """By docker compose itself, which needs no engine to read a file, and by a linter of policies."""
    file = ROOT / "deploy/compose/compose.yaml"
    read = (str(checkers() / "docker-compose"), "--file", "-", "--project-directory", str(file.parent))
    text = file.read_text()
    for told, valid in ((text, True), (text.replace("read_only:", "reed_only:"), False)):
        command = [*read, "config", "--quiet"]
        done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=PATIENCE)
        if (done.returncode == 0) is not valid:
            sys.exit(f"docker compose: {done.stderr or 'does not see a key that there is not'}")
    scan = [str(checkers() / "compose-lint"), "check", "--format", "json", str(file)]
    done = subprocess.run(scan, capture_output=True, text=True, timeout=PATIENCE)
    broken = [finding["rule_id"] for finding in json.loads(done.stdout)["findings"]]
    exempt = EXEMPT["compose"].keys()
    print(f"compose file: valid for docker compose; {len(broken)} findings, of {len(exempt)} exempt policies")
    if set(broken) != exempt:
        sys.exit(f"findings of {sorted(set(broken))}, exempt are {sorted(exempt)}")


def main() -> None:
    validate()
    with tempfile.TemporaryDirectory() as scratch:
        chart, image = Path(scratch, "chart"), Path(scratch, "image")
        chart.mkdir()
        image.mkdir()
        for name in ("least", "keda", "mesh-created"):
            text = yaml.safe_dump_all(render(merged(SETS[name], MONITORED)))
            (chart / f"{name}.yaml").write_text(text)
        (image / "Dockerfile").write_bytes((ROOT / "Dockerfile").read_bytes())
        checkov("chart", "kubernetes", chart)
        checkov("image", "dockerfile", image)
    hadolint()
    compose()


if __name__ == "__main__":
    main()
