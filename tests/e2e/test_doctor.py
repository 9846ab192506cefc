"""`fedsvc doctor` on real servers: each thing that is staged wrongly is found, alone, with how to mend it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import ailments
from servers.ailments import Stage, says
from servers.postgres import PostgresServer
from servers.processes import Fedsvc, run
from servers.topologies import Node, until
from servers.unused_ports import unused_ports
from servers.valkey import ValkeyServer, valkey_server

from fedsvc.archive import migrate
from fedsvc.config import Settings


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with valkey_server(tmp_path_factory.mktemp("durable"), appendonly=True) as running:
        yield running


@pytest.fixture
def redis(server: ValkeyServer) -> ValkeyServer:
    """As it should be, and empty."""
    with server.client() as client:
        client.replicaof("NO", "ONE")
        client.config_set("appendonly", "yes")
        client.config_set("maxmemory-policy", "noeviction")
        client.flushall()
    return server


@pytest.fixture
def settings(
    redis: ValkeyServer, postgres: PostgresServer, tmp_path: Path, encryption_key: str
) -> dict[str, str]:
    file = tmp_path / "keys"
    file.write_text(encryption_key)
    file.chmod(0o600)
    told = {
        "REDIS_URL": redis.url,
        "DATABASE_URL": postgres.url,
        "FEDSVC_KEY_ENCRYPTION_KEYS_FILE": str(file),
    }
    migrate.upgrade(Settings.from_environment(told))
    return told


def test_the_doctor_finds_nothing_wrong_where_nothing_is(settings: dict[str, str]) -> None:
    done = run(settings, "doctor", "--resolve", "localhost", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, found
    assert {f["check"] for f in found if f["grade"] != "ok"} == {"Redis memory"}
    assert {f["check"] for f in found} >= {"database", "clocks", "stored keys", "DNS", "settings together"}


def test_the_doctor_says_how_to_mend_all_that_is_wrong_and_exits_1(
    settings: dict[str, str], redis: ValkeyServer
) -> None:
    with redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    wrong = {"DATABASE_URL": "postgresql://u:geheim@127.0.0.1:1/db"}
    done = run(settings | wrong, "doctor", "--resolve", "localhost")
    assert done.returncode == 1
    assert "FAIL  Redis eviction: allkeys-lru\n      -> set maxmemory-policy noeviction" in done.stdout
    assert "FAIL  database: " in done.stdout
    assert "-> check DATABASE_URL" in done.stdout
    assert done.stderr == "fedsvc: wrong: Redis eviction, database\n"
    assert "geheim" not in done.stdout + done.stderr


def test_the_doctor_goes_on_with_the_rest_where_settings_are_bad(settings: dict[str, str]) -> None:
    wrong = {"FEDSVC_CONCURENCY": "5", "TASK_TTL": "0"}
    done = run(settings | wrong, "doctor", "--resolve", "localhost", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert [f["advice"] for f in found if f["grade"] == "failed"] == [
        "correct or unset FEDSVC_CONCURENCY",
        "correct or unset TASK_TTL",
    ]
    assert {f["check"] for f in found if f["grade"] == "ok"} >= {"database", "clocks", "DNS"}


def test_a_bad_file_of_keys_is_named_as_the_file(settings: dict[str, str]) -> None:
    Path(settings["FEDSVC_KEY_ENCRYPTION_KEYS_FILE"]).write_text("short")
    done = run(settings, "doctor", "--resolve", "localhost")
    assert "FAIL  key encryption keys: FEDSVC_KEY_ENCRYPTION_KEYS_FILE: " in done.stdout


def test_beside_a_running_dev_the_doctor_checks_that_one(tmp_path: Path) -> None:
    listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    with Fedsvc(tmp_path, "dev", *listen) as dev:
        grpc, _ = dev.ready()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        for directory, arguments in ((tmp_path, ()), (elsewhere, ("--data-dir", "../fedsvc-data"))):
            done = run({}, "doctor", "--resolve", "localhost", *arguments, directory=directory)
            assert done.returncode == 0, done.stdout
            assert f"ok    fedsvc dev: runs on {tmp_path}" in done.stdout
            assert "ok    database: sqlite, migrated" in done.stdout
            assert f"ok    callers: all of this machine may call, on {grpc}\n" in done.stdout
            assert "KeyCipher" not in done.stdout
        assert run({}, "doctor", "--resolve", "localhost", directory=elsewhere).returncode == 1
    done = run({}, "doctor", "--data-dir", "fedsvc-data", directory=tmp_path)
    assert done.returncode == 1
    assert "FAIL  fedsvc dev: none runs on fedsvc-data" in done.stdout


@pytest.mark.parametrize("command", ["dev", "worker"])
def test_authorities_that_cannot_be_used_end_the_start_with_the_setting(
    settings: dict[str, str], tmp_path: Path, command: str
) -> None:
    bad = {"FEDSVC_CA_FILE": "/etc/passwd"}
    done = run(settings | bad, command, "--http-listen", "127.0.0.1:0", directory=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "fedsvc: FEDSVC_CA_FILE: /etc/passwd holds no certificates in PEM\n"


@pytest.fixture
def stage(
    settings: dict[str, str],
    redis: ValkeyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rsa_pem: str,
) -> Stage:
    return Stage(settings, redis, tmp_path, monkeypatch, rsa_pem)


def test_replicas_that_are_there_are_counted(stage: Stage) -> None:
    master_port, port = unused_ports(2)
    master = Node(stage.directory, master_port, "--appendonly", "yes")
    replica = Node(stage.directory, port, "--replicaof", "127.0.0.1", str(master_port))
    try:
        # The replica knows of its link a moment before the master does.
        until("the replica is linked", lambda: "online" in master.replication("slave0"))
        stage.settings |= {"REDIS_URL": f"redis://127.0.0.1:{master_port}/0"}
        stage.settings |= {"FEDSVC_DURABILITY": "replicated"}
        assert stage.find() == []
        stage.settings |= {"FEDSVC_DURABILITY_REPLICAS": "2"}
        (finding,) = stage.find()
        assert finding.found.startswith("1 online, and FEDSVC_DURABILITY=replicated asks for 2")
    finally:
        replica.kill()
        master.kill()


@pytest.mark.parametrize(
    ("wrong", "check", "grade", "advice"),
    [
        (ailments.evicts, "Redis eviction", "failed", "set maxmemory-policy noeviction"),
        (ailments.hides_its_version, "Redis version", "warning", "Redis 7 or Valkey is needed"),
        (ailments.forgets, "Redis persistence", "failed", "set appendonly yes"),
        (ailments.wants_more_safety_than_there_is, "Redis persistence", "failed", "set appendonly yes"),
        (ailments.is_a_replica, "Redis role", "failed", "point REDIS_URL to the master"),
        (ailments.has_other_partitions, "partitions", "failed", "set FEDSVC_PARTITIONS to 5"),
        (ailments.was_never_migrated, "database", "failed", "run: fedsvc migrate"),
        (ailments.was_migrated_long_ago, "database", "failed", "run: fedsvc migrate"),
        (ailments.is_not_there, "database", "failed", "check DATABASE_URL"),
        (ailments.lost_a_key_encryption_key, "stored keys", "failed", "add the key encryption key of before"),
        (ailments.shows_its_keys, "key encryption keys", "failed", "chmod 600"),
        (ailments.has_keys_mounted_for_all, "key encryption keys", "warning", "no harm in a container"),
        (ailments.has_keys_mounted_that_others_write, "key encryption keys", "failed", "chmod 600"),
        (ailments.has_a_clock_that_is_off, "clocks", "failed", "run an NTP client"),
        (ailments.has_no_dns, "DNS", "failed", "check /etc/resolv.conf"),
        (ailments.has_bad_tokens, "callers", "failed", "correct FEDSVC_TOKENS_FILE"),
        (ailments.has_no_tokens_file, "callers", "failed", "this user must be able to read it"),
        (ailments.lets_others_write_tokens, "tokens file", "failed", "chmod 600"),
        (ailments.lets_others_read_tokens, "tokens file", "warning", "chmod 600"),
        (ailments.has_tokens_mounted_for_all, "tokens file", "warning", "no harm in a container"),
        (ailments.has_no_tls, "callers", "warning", "where nobody listens in"),
        (ailments.has_no_door, "callers", "warning", "something else says who may call"),
        (ailments.has_an_old_certificate, "TLS certificate", "failed", "renew it"),
        (ailments.has_a_certificate_for_later, "TLS certificate", "failed", "this machine's clock"),
        (ailments.has_a_certificate_that_ends_soon, "TLS certificate", "warning", "renew it"),
        (
            ailments.has_the_key_of_another_certificate,
            "callers",
            "failed",
            "two PEM files that belong together",
        ),
        (ailments.shows_its_certificates_key, "TLS certificate", "failed", "chmod 600"),
        (
            ailments.forgets_dead_letters_too_soon,
            "settings together",
            "failed",
            "raise FEDSVC_ARCHIVE_DEAD_RETENTION",
        ),
        (ailments.is_critical_before_it_warns, "settings together", "failed", "lower FEDSVC_MEMORY_WARNING"),
        (ailments.trusts_no_file, "authorities (FEDSVC_CA_FILE)", "failed", "certificates in PEM"),
        (says("FEDSVC_CONCURENCY", "5"), "settings", "failed", "unset FEDSVC_CONCURENCY"),
        (says("FEDSVC_KEY_ENCRYPTION_KEYS", "short"), "key encryption keys", "failed", "make one with"),
        (says("REDIS_URL", "redis://127.0.0.1:1/0"), "Redis", "failed", "start it"),
        (says("REDIS_URL", "nonsense"), "Redis", "failed", "set REDIS_URL"),
        (says("DATABASE_URL", "sqlite:////tmp/none/there.db"), "database", "failed", "check DATABASE_URL"),
        (says("FEDSVC_LISTEN", "0.0.0.0:50051"), "callers", "failed", "correct FEDSVC_LISTEN"),
        (says("FEDSVC_TLS_CERT", "/nonexistent"), "callers", "failed", "correct FEDSVC_TLS_KEY"),
        (says("FEDSVC_LIMITS", "piefed:rate=x"), "callers", "failed", "correct FEDSVC_LIMITS"),
        (says("FEDSVC_HOST_START", "9"), "settings together", "failed", "lower FEDSVC_HOST_START"),
        (says("FEDSVC_CONNECT_TIMEOUT", "50"), "settings together", "failed", "lower FEDSVC_CONNECT_TIMEOUT"),
        (says("FEDSVC_CIRCUIT_FIRST_PROBE", "3600"), "settings together", "failed", "raise FEDSVC_CIRCUIT"),
        (says("FEDSVC_ARCHIVE_RETENTION", "60"), "settings together", "failed", "raise FEDSVC_ARCHIVE"),
        (says("FEDSVC_SHUTDOWN_GRACE", "5"), "settings together", "warning", "raise it"),
        (says("FEDSVC_DURABILITY", "replicated"), "Redis replicas", "failed", "connect replicas"),
        (ailments.traces_to_nowhere, "tracing", "failed", "correct OTEL_TRACES_EXPORTER"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_staged_wrongly_is_found_alone_with_how_to_mend_it(
    stage: Stage, wrong: Callable[[Stage], None], check: str, grade: str, advice: str
) -> None:
    wrong(stage)
    (finding,) = stage.find()
    assert (finding.check, finding.grade) == (check, grade)
    assert advice in finding.advice
    assert "geheim" not in finding.found


def test_secrets_as_kubernetes_mounts_them_are_well(stage: Stage) -> None:
    stage.settings["FEDSVC_TOKENS_FILE"] = stage.file("tokens", ailments.TOKEN_ENTRY, 0o440)
    Path(stage.settings["FEDSVC_KEY_ENCRYPTION_KEYS_FILE"]).chmod(0o440)
    stage.patch.setattr("fedsvc.cli.findings.os.geteuid", lambda: 10001)
    assert stage.find() == []
