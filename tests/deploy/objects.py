"""Checks Kubernetes objects against the schemas of their kinds. Runs where the checkers are, without fedsvc.

Reads a JSON list of objects from standard input and prints what is wrong as JSON. Kubernetes' own objects are
held against its own schemas, strictly: an unknown field is a problem. Those of KEDA and the Prometheus
operator are held against models generated from their CRDs, and have to come out of these as they went in,
since the models pass over what they do not know.
"""

import json
import sys
from typing import Any

import kubernetes_validate
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as monitoring

#: of Kubernetes: the oldest that the chart takes, and the newest whose schemas there are
VERSIONS = ("1.27", "1.37")
CUSTOM = {
    "keda.sh/v1alpha1": keda,
    "monitoring.coreos.com/v1": monitoring,
}


def problems(found: dict[str, Any]) -> list[str]:
    custom = CUSTOM.get(found["apiVersion"])
    if custom is not None:
        try:
            model = getattr(custom, found["kind"]).model_validate(found)
        except ValueError as error:
            return [str(error)]
        told = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
        return list(lost(found, told, ""))
    wrong = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            wrong.append(f"{version}: {'.'.join(map(str, error.path))}: {error.message}")
    return wrong


def lost(given: Any, told: Any, where: str) -> list[str]:
    """What of `given` is not in `told`."""
    if isinstance(given, dict) and isinstance(told, dict):
        missing = [f"{where}.{key} is unknown" for key in given.keys() - told.keys()]
        return missing + [
            p for key in given.keys() & told.keys() for p in lost(given[key], told[key], f"{where}.{key}")
        ]
    if isinstance(given, list) and isinstance(told, list) and len(given) == len(told):
        return [
            p for i, pair in enumerate(zip(given, told, strict=True)) for p in lost(*pair, f"{where}[{i}]")
        ]
    return [] if given == told or str(given) == str(told) else [f"{where}: {given!r} became {told!r}"]


def main() -> None:
    seen: dict[str, list[str]] = {}
    told = []
    for found in json.load(sys.stdin):
        text = json.dumps(found, sort_keys=True)
        # Most objects of a matrix are alike.
        if text not in seen:
            seen[text] = problems(found)
        told += [f"{found['kind']} {found['metadata']['name']}: {problem}" for problem in seen[text]]
    json.dump({"problems": told, "distinct": len(seen)}, sys.stdout)


if __name__ == "__main__":
    main()
