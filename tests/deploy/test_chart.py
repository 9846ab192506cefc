"""The chart, rendered with many values: what it promises, object by object."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
import yaml

from deploy.matrix import CREATED, EXISTING, MESH, SETS, TLS, Values, merged, scaled, streams
from deploy.programs import ROOT, Missing, helm, or_skip
from deploy.rendering import (
    CHART,
    NAMESPACE,
    Object,
    chart_file,
    environment,
    one,
    pods,
    refusal,
    render,
    run,
)
from fedsvc import __version__
from fedsvc.config import Settings
from fedsvc.domain.delivery import Priority
from fedsvc.queue.keys import Keys
from fedsvc.server.app import SERVICES
from fedsvc.worker import addresses
from tools.docs.chart_files import RESERVED, value_rows

VALUES: Values = yaml.safe_load(chart_file("values.yaml"))


@pytest.fixture(scope="module", autouse=True)
def program() -> None:
    try:
        helm()
    except Missing as error:
        or_skip(error)


@cache
def rendered(name: str) -> list[Object]:
    return render(SETS[name])


def each(kind: str) -> list[tuple[str, Object]]:
    return [(name, o) for name in SETS for o in rendered(name) if o["kind"] == kind]


@pytest.mark.parametrize("name", SETS)
def test_helm_lints_it_without_a_warning(name: str) -> None:
    done = run("lint", "--strict", str(CHART), values=SETS[name])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("name", SETS)
def test_names_are_unique_and_everything_is_in_the_release_s_namespace(name: str) -> None:
    objects = rendered(name)
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(set(names)) == len(names)
    for o in objects:
        assert o["metadata"]["namespace"] == NAMESPACE
        assert len(o["metadata"]["name"]) <= 63
        assert o["metadata"]["labels"]["app.kubernetes.io/name"] == "fedsvc"


@pytest.mark.parametrize("name", SETS)
def test_every_pod_is_restricted_and_knows_nothing_of_kubernetes(name: str) -> None:
    for component, spec in pods(rendered(name)).items():
        assert spec["automountServiceAccountToken"] is False, component
        # or Kubernetes would set FEDSVC_ variables that are none
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for banned in ("hostNetwork", "hostPID", "hostIPC"):
            assert banned not in spec
        assert {kind for v in spec["volumes"] for kind in v} <= {"name", "emptyDir", "secret", "configMap"}
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["runAsUser"] == 10001
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("name", SETS)
def test_fedsvc_takes_every_setting_that_pods_are_given(name: str) -> None:
    for component in pods(rendered(name)):
        given = environment(rendered(name), component)
        ours = {key: value for key, value in given.items() if key.startswith("FEDSVC_")}
        files = {key: "" for key in ours if key in ("FEDSVC_REDIS_URL_FILE", "FEDSVC_DATABASE_URL_FILE")}
        Settings.from_environment(ours | files)
        assert not any("geheim" in value for value in given.values()), "a secret in a variable"


def test_large_numbers_stay_numbers() -> None:
    given = environment(rendered("settings"), "worker")
    assert given["FEDSVC_ARCHIVE_RETENTION"] == "3153600000"
    assert given["FEDSVC_RETRY_SCALE"] == "0.5"
    assert given["OTEL_SERVICE_NAME"] == "fedsvc"


def test_servers_are_probed_by_grpc_by_the_name_of_a_service_that_there_is() -> None:
    [server] = pods(rendered("least"))["server"]["containers"]
    probe = server["readinessProbe"]["grpc"]
    assert probe["service"] in SERVICES
    given = environment(rendered("least"), "server")
    assert given["FEDSVC_HEALTH_LISTEN"].endswith(f":{probe['port']}")
    assert server["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert float(given["FEDSVC_MAX_CONNECTION_AGE"]) < 600


def test_clients_resolve_every_ready_server() -> None:
    service = one(rendered("least"), "Service", "-server")["spec"]
    assert service["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in service
    server = one(rendered("least"), "Deployment", "-server")["spec"]
    assert service["selector"].items() <= server["template"]["metadata"]["labels"].items()
    assert server["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_chart_knows_the_default_that_it_checks_against() -> None:
    default = Settings.model_fields["memory_critical"].default
    assert f".FEDSVC_MEMORY_CRITICAL | default {default:g})" in chart_file("templates/checks.yaml")


@pytest.mark.parametrize("timeout", [15, 60])
def test_a_worker_has_longer_to_end_than_any_delivery(timeout: int) -> None:
    values = {"worker": {"deliveryTimeoutSeconds": timeout, "shutdownGraceSeconds": 2 * timeout}}
    objects = render(merged(EXISTING, TLS, values))
    given, spec = environment(objects, "worker"), pods(objects)["worker"]
    [worker] = spec["containers"]
    pre_stop = int(worker["lifecycle"]["preStop"]["exec"]["command"][1])
    assert float(given["FEDSVC_SHUTDOWN_GRACE"]) >= 2 * float(given["FEDSVC_DELIVERY_TIMEOUT"])
    assert spec["terminationGracePeriodSeconds"] >= pre_stop + float(given["FEDSVC_SHUTDOWN_GRACE"]) + 15
    assert (worker["livenessProbe"]["httpGet"]["path"], worker["readinessProbe"]["httpGet"]["path"]) == (
        "/healthz",
        "/readyz",
    )


def test_the_migration_comes_before_everything_and_brings_what_it_needs() -> None:
    for name in ("created-secrets", "least"):
        objects = rendered(name)
        hooks = {
            (o["kind"], o["metadata"]["name"]): int(o["metadata"]["annotations"]["helm.sh/hook-weight"])
            for o in objects
            if o["metadata"].get("annotations", {}).get("helm.sh/hook") == "pre-install,pre-upgrade"
        }
        job = one(objects, "Job", "-migration")
        assert hooks.pop(("Job", job["metadata"]["name"])) == 0
        assert all(weight < 0 for weight in hooks.values())
        spec = job["spec"]["template"]["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in hooks
        [secret] = [v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v]
        assert ("Secret", secret) in hooks or secret == "fedsvc-secrets"
        assert ("NetworkPolicy", "fedsvc-migration") in hooks
        assert environment(objects, "migration").keys() == {"FEDSVC_DATABASE_URL_FILE"}


def test_variables_that_are_not_ours_reach_all_containers() -> None:
    objects = render(
        merged(EXISTING, TLS, {"extraEnv": {"PGSSLROOTCERT": "/etc/pg/ca.crt", "LEVEL": 3000000}})
    )
    told = {"PGSSLROOTCERT": "/etc/pg/ca.crt", "LEVEL": "3000000"}
    for component in pods(objects):
        assert environment(objects, component).items() >= told.items()


def test_no_secret_of_the_values_is_anywhere_but_in_secrets() -> None:
    shown = {False: "", True: ""}
    for o in rendered("created-secrets"):
        shown[o["kind"] == "Secret"] += json.dumps(o)
    for value in CREATED["secrets"].values():
        assert value in shown[True]
        assert value not in shown[False]
    assert "geheim" not in shown[False]


@pytest.mark.parametrize("name", [n for n in SETS if n.startswith("keda") or n == "partitions"])
def test_keda_has_a_floor_of_one_and_a_fallback_and_never_looks_at_lag(name: str) -> None:
    spec = one(rendered(name), "ScaledObject", "-worker")["spec"]
    assert spec["minReplicaCount"] >= 1
    assert spec["fallback"]["replicas"] >= 1
    assert "lag" not in json.dumps(spec).lower()
    assert "replicas" not in one(rendered(name), "Deployment", "-worker")["spec"]
    assert spec["scaleTargetRef"]["name"] == one(rendered(name), "Deployment", "-worker")["metadata"]["name"]


def test_keda_asks_a_server_for_the_depth() -> None:
    [trigger] = one(rendered("keda"), "ScaledObject", "-worker")["spec"]["triggers"]
    service = one(rendered("keda"), "Service", "-http")
    host = f"{service['metadata']['name']}.{NAMESPACE}.svc:{service['spec']['ports'][0]['port']}"
    assert trigger["metadata"]["url"] == f"http://{host}/depth"
    assert trigger["metadata"]["valueLocation"] == "depth"


@pytest.mark.parametrize(
    ("name", "partitions", "first"), [("keda-streams", 16, "fedsvc"), ("partitions", 4, "f")]
)
def test_keda_adds_up_the_length_of_every_ready_stream(name: str, partitions: int, first: str) -> None:
    spec = one(rendered(name), "ScaledObject", "-worker")["spec"]
    keys = Keys(first)
    expected = {keys.partition(n).ready(priority) for n in range(partitions) for priority in Priority}
    assert {t["metadata"]["stream"] for t in spec["triggers"]} == expected
    assert all("consumerGroup" not in t["metadata"] for t in spec["triggers"])
    formula = spec["advanced"]["scalingModifiers"]["formula"]
    assert set(formula.split(" + ")) == {t["name"] for t in spec["triggers"]}


def test_workers_reach_the_internet_and_nothing_that_a_delivery_may_not() -> None:
    egress = one(rendered("least"), "NetworkPolicy", "-worker")["spec"]["egress"]
    [blocks] = [rule["to"] for rule in egress if any("ipBlock" in peer for peer in rule["to"])]
    by_cidr = {peer["ipBlock"]["cidr"]: set(peer["ipBlock"]["except"]) for peer in blocks}
    refused_v4 = {str(network) for network, _ in addresses._REFUSED_V4}
    refused_v6 = {
        str(network) for network, _ in addresses._REFUSED_V6 if network.subnet_of(addresses._GLOBAL_V6)
    }
    assert by_cidr == {"0.0.0.0/0": refused_v4, str(addresses._GLOBAL_V6): refused_v6}


def test_every_pod_is_selected_by_one_policy_that_limits_both_ways() -> None:
    objects = rendered("least")
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    assert all(sorted(policy["policyTypes"]) == ["Egress", "Ingress"] for policy in policies)
    for o in objects:
        if o["kind"] in ("Deployment", "Job"):
            labels = o["spec"]["template"]["metadata"]["labels"]
            selecting = [p for p in policies if p["podSelector"]["matchLabels"].items() <= labels.items()]
            assert len(selecting) == 1
    internet = [p for p in policies if "ipBlock" in json.dumps(p)]
    assert [p["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for p in internet] == ["worker"]


def test_the_alerts_are_those_of_the_project() -> None:
    rule = one(rendered("monitored"), "PrometheusRule", "")
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    base = "https://wiki.example/fedsvc"
    elsewhere = merged(SETS["monitored"], {"metrics": {"prometheusRule": {"runbookBaseUrl": base}}})
    [group] = one(render(elsewhere), "PrometheusRule", "")["spec"]["groups"]
    assert all(rule["annotations"]["runbook_url"].startswith(f"{base}#") for rule in group["rules"])
    [dashboard] = one(rendered("monitored"), "ConfigMap", "-dashboard")["data"].values()
    assert json.loads(dashboard) == json.loads((ROOT / "deploy/grafana/fedsvc.json").read_text())


def test_monitors_select_what_they_scrape() -> None:
    objects = rendered("monitored")
    wanted = one(objects, "ServiceMonitor", "")["spec"]["selector"]["matchLabels"]
    services = [o for o in objects if o["kind"] == "Service"]
    assert [o["metadata"]["name"] for o in services if wanted.items() <= o["metadata"]["labels"].items()] == [
        "fedsvc-http"
    ]
    wanted = one(objects, "PodMonitor", "")["spec"]["selector"]["matchLabels"]
    worker = one(objects, "Deployment", "-worker")["spec"]["template"]["metadata"]["labels"]
    assert wanted.items() <= worker.items()


def test_a_changed_secret_or_setting_makes_new_pods_and_changed_tokens_do_not() -> None:
    def annotations(**secrets: str) -> Any:
        objects = render(merged(CREATED, TLS, {"secrets": secrets}))
        return one(objects, "Deployment", "-server")["spec"]["template"]["metadata"]["annotations"]

    assert annotations(tokens="other:deliver:*:" + "1" * 64) == annotations()
    assert annotations(redisUrl="redis://other:6379/0") != annotations()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "set secrets.existingSecret"),
        (EXISTING, "set tls.existingSecret"),
        (merged(EXISTING, {"auth": {"tokens": False}}, TLS), "needs insecure"),
        (merged(EXISTING, TLS, {"worker": {"shutdownGraceSeconds": 20}}), "at least twice"),
        (merged(EXISTING, TLS, {"settings": {"FEDSVC_CONNECT_TIMEOUT": "50"}}), "FEDSVC_CONNECT_TIMEOUT"),
        (merged(EXISTING, TLS, {"settings": {"FEDSVC_MEMORY_WARNING": 0.95}}), "FEDSVC_MEMORY_CRITICAL"),
        (merged(EXISTING, TLS, {"secrets": {"databaseUrl": "sqlite:///x.db"}}), "SQLite"),
        (merged(EXISTING, TLS, scaled("keda", minReplicas=0)), "minReplicas"),
        (merged(EXISTING, TLS, scaled("keda", minReplicas=9, maxReplicas=3)), "more than maxReplicas"),
        (merged(EXISTING, TLS, scaled("sometimes")), "autoscaling"),
        (merged(EXISTING, TLS, streams("redis", addresses="")), "addresses"),
        (merged(EXISTING, TLS, {"settings": {"FEDSVC_PARTITION": 4}}), "FEDSVC_PARTITION"),
        (merged(EXISTING, TLS, {"settings": {"FEDSVC_TOKENS": "x"}}), "FEDSVC_TOKENS"),
        (merged(EXISTING, TLS, {"extraEnv": {"REDIS_URL": "x"}}), "REDIS_URL"),
        (merged(EXISTING, TLS, {"wrker": {}}), "wrker"),
        (merged(EXISTING, MESH, {"tls": {"clientCertificates": True}}), "clientCertificates"),
    ],
)
def test_values_that_cannot_work_are_refused_and_say_what_is_wrong(values: Values, why: str) -> None:
    assert why in refusal(values)


def test_the_schema_knows_every_value_and_no_other() -> None:
    def paths(value: Any, schema: Any, at: str) -> None:
        if isinstance(value, dict) and "properties" in schema and at != ".settings":
            assert set(value) == set(schema["properties"]) - {"global"}, at
            for key, inner in value.items():
                paths(inner, schema["properties"][key], f"{at}.{key}")

    schema = json.loads(chart_file("values.schema.json"))
    paths(VALUES, schema, "")
    settings = {Settings.variable(name) for name in Settings.model_fields}
    assert set(schema["properties"]["settings"]["properties"]) == settings - RESERVED
    assert settings >= RESERVED


def test_every_value_is_described() -> None:
    described = {name for name, _, _ in value_rows(chart_file("values.yaml"))}

    def leaves(value: Any, at: str) -> list[str]:
        if at in described or not isinstance(value, dict) or not value:
            return [at]
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{at}.{key}".lstrip("."))]

    assert [leaf for leaf in leaves(VALUES, "") if leaf not in described] == []


def test_the_chart_runs_this_version() -> None:
    chart = yaml.safe_load(chart_file("Chart.yaml"))
    assert chart["appVersion"] == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", chart["version"])
