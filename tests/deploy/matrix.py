"""Sets of values that the chart is rendered with."""

from __future__ import annotations

import itertools
from copy import deepcopy
from typing import Any, Final

Values = dict[str, Any]

EXISTING: Final[Values] = {"secrets": {"existingSecret": "fedsvc-secrets"}}
CREATED: Final[Values] = {
    "secrets": {
        "redisUrl": "redis://:geheim@valkey:6379/0",
        "databaseUrl": "postgresql://fedsvc:geheim@postgres/fedsvc",
        "keyEncryptionKeys": "a2V5LWVuY3J5cHRpb24ta2V5LW9mLTMyLWJ5dGVzISE=",
        "tokens": "piefed:deliver:*:" + "0" * 64,
    }
}
TLS: Final[Values] = {"tls": {"existingSecret": "fedsvc-tls"}}
MUTUAL: Final[Values] = {"tls": {"existingSecret": "fedsvc-tls", "clientCertificates": True}}
MESH: Final[Values] = {"insecure": True, "auth": {"tokens": False}}


def scaled(type_: str, **more: Any) -> Values:
    return {"worker": {"autoscaling": {"type": type_, **more}}}


def streams(topology: str, **more: Any) -> Values:
    redis = {"topology": topology, "addresses": "valkey:6379", **more}
    return scaled("keda", keda={"trigger": "redisStreams", "redis": redis})


SCALED: Final[dict[str, Values]] = {
    "fixed": {},
    "hpa": scaled("hpa"),
    "keda": scaled("keda"),
    "keda-prometheus": scaled("keda", keda={"trigger": "prometheus"}),
    "keda-streams": streams("redis"),
}
MONITORED: Final[Values] = {
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True},
        "grafanaDashboard": {"enabled": True},
    }
}
OPEN: Final[Values] = {"networkPolicy": {"enabled": False}}


def merged(*parts: Values) -> Values:
    result: Values = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, dict) and isinstance(result.get(key), dict):
                result[key] = merged(result[key], value)
            else:
                result[key] = deepcopy(value)
    return result


_BASE: Final = merged(EXISTING, TLS)
PLACED: Final[Values] = {
    "priorityClassName": "important",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpread": "DoNotSchedule",
    "podAnnotations": {"example.org/team": "federation"},
    "podLabels": {"example.org/tier": "backend"},
}

#: one thing at a time
SETS: Final[dict[str, Values]] = {
    "least": _BASE,
    "created-secrets": merged(CREATED, TLS),
    "mutual-tls": merged(EXISTING, MUTUAL),
    "mesh": merged(EXISTING, MESH),
    "mesh-created": merged(CREATED, MESH),
    **{name: merged(_BASE, values) for name, values in SCALED.items() if values},
    "keda-cluster": merged(_BASE, streams("cluster", tls=True, passwordSecret={"name": "redis"})),
    "keda-sentinel": merged(_BASE, streams("sentinel", sentinelMaster="mymaster")),
    "partitions": merged(
        _BASE, streams("redis"), {"settings": {"FEDSVC_PARTITIONS": 4, "FEDSVC_NAMESPACE": "f"}}
    ),
    "servers-scaled": merged(_BASE, {"server": {"autoscaling": {"enabled": True}}}),
    "monitored": merged(_BASE, MONITORED),
    "open": merged(_BASE, OPEN),
    "ipv6": merged(_BASE, {"listenAddress": "[::]"}),
    "placed": merged(_BASE, {"server": PLACED, "worker": PLACED}),
    "unspread": merged(_BASE, {"server": {"topologySpread": ""}, "worker": {"topologySpread": ""}}),
    "no-budgets": merged(
        _BASE,
        {part: {"podDisruptionBudget": {"maxUnavailable": None}} for part in ("server", "worker")},
    ),
    "no-migration": merged(_BASE, {"migration": {"enabled": False}}),
    "own-account": merged(_BASE, {"serviceAccount": {"create": False, "name": "mine"}}),
    "pinned": merged(
        _BASE,
        {
            "image": {
                "repository": "registry.example/fedsvc",
                "digest": "sha256:" + "0" * 64,
                "pullSecrets": ["r"],
            }
        },
    ),
    "settings": merged(
        _BASE,
        {
            "settings": {"FEDSVC_ARCHIVE_RETENTION": 3_153_600_000, "FEDSVC_RETRY_SCALE": 0.5},
            "extraEnv": {"OTEL_SERVICE_NAME": "fedsvc"},
            "commonLabels": {"example.org/cost": "42"},
            "fullnameOverride": "federation",
        },
    ),
    "volumes": merged(
        _BASE,
        {
            "extraVolumes": [{"name": "ca", "configMap": {"name": "redis-ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/redis-ca", "readOnly": True}],
            "networkPolicy": {"extraEgress": [{"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]}]},
        },
    ),
}


def product() -> dict[str, Values]:
    """Everything with everything."""
    axes: tuple[dict[str, Values], ...] = (
        {"existing": EXISTING, "created": CREATED},
        {"tls": TLS, "mutual": MUTUAL, "mesh": MESH},
        SCALED,
        {"policies": {}, "open": OPEN},
        {"unmonitored": {}, "monitored": MONITORED},
    )
    return {
        "-".join(name for name, _ in chosen): merged(*(values for _, values in chosen))
        for chosen in itertools.product(*(axis.items() for axis in axes))
    }
