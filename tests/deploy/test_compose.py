"""The compose file: what it runs is pinned and hardened, and what it says to whom is what these take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import redis
import yaml
from servers.valkey import valkey_server

from deploy.programs import ROOT
from fedsvc import __version__
from fedsvc.config import Settings
from fedsvc.domain.keys import KeyCipher
from fedsvc.server.caller import Scope
from fedsvc.server.tokens import TokenBook

HOME: Final = ROOT / "deploy/compose"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((HOME / "compose.yaml").read_text())
SERVICES: Final[dict[str, Any]] = COMPOSE["services"]
OURS: Final = ("migrate", "server", "worker")
ORIGIN: Final = "social.example"


@pytest.fixture(scope="module")
def secrets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compose") / "secrets"
    prepare(directory)
    return directory


def prepare(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(HOME / "prepare.py"), str(directory), "--origin", ORIGIN]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_it_has_everything_that_is_needed() -> None:
    assert set(SERVICES) == {*OURS, "valkey", "postgres", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_one_version_of_it(name: str) -> None:
    image = re.sub(r"\$\{IMAGE:-(.*)\}", r"\1", SERVICES[name]["image"])
    assert re.fullmatch(r"[\w.-]+/[\w./-]+:v?\d+\.\d+(\.\d+)?(-\w+)?", image)
    if name in OURS:
        assert image == f"localhost/fedsvc:{__version__}"


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_rights_and_a_limit_and_writes_where_it_may(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] not in ("root", "0", "0:0")
    assert {"mem_limit", "pids_limit", "restart"} <= set(service)
    assert "privileged" not in service
    for volume in service.get("volumes", ()):
        source, _, _ = volume.partition(":")
        if source.startswith("."):
            assert volume.endswith(":ro")
            assert (HOME / source).is_file(), volume
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "migrate"])
def test_a_service_is_asked_how_it_is(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


def test_nobody_but_this_machine_reaches_a_port() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 4
    assert all(port.startswith("127.0.0.1:") for port in published)
    for name in ("valkey", "postgres", "migrate"):
        assert SERVICES[name]["networks"] == ["data"]
        assert "ports" not in SERVICES[name]
    assert COMPOSE["networks"]["data"] == {"internal": True}


def test_server_and_worker_come_after_the_migration_and_it_after_the_database() -> None:
    for name in ("server", "worker"):
        assert SERVICES[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "valkey": {"condition": "service_healthy"},
        }
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def in_place(name: str, secrets_dir: Path) -> dict[str, str]:
    """What a service of ours is given, with its secrets where the test has them."""
    return {
        key: value.replace("/run/secrets", str(secrets_dir))
        for key, value in SERVICES[name]["environment"].items()
    }


@pytest.mark.parametrize("name", OURS)
def test_what_a_service_is_given_are_settings_and_its_secrets_are_there(name: str, secrets_dir: Path) -> None:
    settings = Settings.from_environment(in_place(name, secrets_dir))
    assert settings.database_url.startswith("postgresql://fedsvc:")
    named = {
        value.removeprefix("/run/secrets/")
        for value in SERVICES[name]["environment"].values()
        if value.startswith("/run/secrets/")
    }
    assert named == set(SERVICES[name]["secrets"])
    if name != "migrate":
        assert settings.redis_url.endswith("@valkey:6379/0")
        KeyCipher.parse(settings.key_encryption_secret())


def test_no_secret_stands_in_the_file() -> None:
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
    text = (HOME / "compose.yaml").read_text()
    assert not re.search(r"(PASSWORD|TOKEN|KEYS?|URL): (?!/run/secrets)", text)
    assert "deploy/compose/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_prepare_makes_every_secret_and_changes_none(secrets_dir: Path) -> None:
    made = {path.name: path.read_text() for path in secrets_dir.iterdir()}
    assert set(made) == {*COMPOSE["secrets"], "token", "operator-token"}
    assert secrets_dir.stat().st_mode & 0o077 == 0
    assert prepare(secrets_dir).returncode == 0
    assert {path.name: path.read_text() for path in secrets_dir.iterdir()} == made


def test_prepare_does_not_mix_old_secrets_with_new(tmp_path: Path) -> None:
    (tmp_path / "redis-url").write_text("redis://:old@valkey:6379/0")
    done = prepare(tmp_path)
    assert done.returncode == 1
    assert "belong together" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["redis-url"]


def test_the_application_may_what_it_needs_for_its_origin_and_operators_the_rest(secrets_dir: Path) -> None:
    settings = Settings.from_environment(in_place("server", secrets_dir))
    book = TokenBook(settings)
    assert not book.open
    shown = [(secrets_dir / name).read_text().strip() for name in ("token", "operator-token")]
    application, operator = (book.identify(book.digest(token)) for token in shown)
    assert application is not None
    assert operator is not None
    assert (application.scopes, application.origins) == (
        frozenset({Scope.DELIVER, Scope.KEYS}),
        frozenset({ORIGIN}),
    )
    assert (operator.scopes, operator.origins) == (frozenset(Scope), None)


def test_prepare_wants_to_know_for_whom_the_application_signs(tmp_path: Path) -> None:
    for arguments, problem in (((), "--origin"), (("--origin", "https://a.example"), "without https")):
        command = [sys.executable, "-I", str(HOME / "prepare.py"), str(tmp_path / "made"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode != 0
        assert problem in done.stderr
        assert not (tmp_path / "made").exists()


def test_valkey_keeps_what_it_has_and_asks_for_the_password(secrets_dir: Path, tmp_path: Path) -> None:
    program, file, *arguments = SERVICES["valkey"]["command"]
    assert (program, file) == ("valkey-server", "/run/secrets/valkey-settings")
    at = arguments.index("--dir")
    options = [*arguments[:at], *arguments[at + 2 :]]
    with valkey_server(tmp_path, extra=tuple(options)) as server, server.client() as client:
        told: Any = client.config_get("appendonly", "maxmemory-policy", "maxmemory", "appendfsync")
        assert told == {
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
            "maxmemory": str(512 * 1024 * 1024),
            "appendfsync": "everysec",
        }
        client.config_set("requirepass", (secrets_dir / "valkey-settings").read_text().split()[1])
        with pytest.raises(redis.AuthenticationError), server.client() as stranger:
            stranger.ping()


def test_prometheus_scrapes_what_runs_and_grafana_shows_the_dashboard() -> None:
    prometheus = yaml.safe_load((HOME / "prometheus.yml").read_text())
    scraped = {
        (name, config["port"])
        for job in prometheus["scrape_configs"]
        for config in job["dns_sd_configs"]
        for name in config["names"]
    }
    assert scraped == {("server", 8080), ("worker", 8080)}
    volumes = [v.split(":") for name in ("prometheus", "grafana") for v in SERVICES[name]["volumes"]]
    mounted = {inside: source for source, inside, *_ in volumes}
    assert [mounted[file] for file in prometheus["rule_files"]] == ["../prometheus/alerts.yml"]
    [provider] = yaml.safe_load((HOME / "grafana/dashboards.yml").read_text())["providers"]
    shown = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert str(Path(shown).parent) == provider["options"]["path"]
    assert mounted[shown] == "../grafana/fedsvc.json"
    [source] = yaml.safe_load((HOME / "grafana/datasources.yml").read_text())["datasources"]
    [variable] = json.loads((ROOT / "deploy/grafana/fedsvc.json").read_text())["templating"]["list"]
    assert variable["query"] == source["type"]
    assert source["url"] == "http://prometheus:9090"


def test_a_worker_gets_longer_to_end_than_it_takes() -> None:
    worker = SERVICES["worker"]
    grace = float(worker["environment"]["FEDSVC_SHUTDOWN_GRACE"])
    assert grace >= 2 * float(Settings.model_fields["delivery_timeout"].default)
    assert float(worker["stop_grace_period"].removesuffix("s")) >= grace + 15
