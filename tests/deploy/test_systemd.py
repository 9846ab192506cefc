"""The units for systemd run commands that there are, with settings that there are, and lock them in."""

from __future__ import annotations

import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Final

import pytest

from deploy.programs import ROOT
from fedsvc.config import Settings
from tools.docs.checks import unknown_command

HOME: Final = ROOT / "deploy/systemd"
UNITS: Final = ("fedsvc-server", "fedsvc-worker")
PROGRAM: Final = "/opt/fedsvc/bin/fedsvc"


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(HOME / f"{name}.service")
    return parser


def environment() -> dict[str, str]:
    """Commented settings too: they are there to be taken."""
    lines = [line.removeprefix("#") for line in (HOME / "environment").read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith(" "))


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_runs_commands_that_there_are(name: str) -> None:
    service = unit(name)["Service"]
    commands = [service[key] for key in ("ExecStartPre", "ExecStart") if key in service]
    assert commands
    for command in commands:
        program, _, words = command.partition(" ")
        assert program == PROGRAM
        assert list(unknown_command(words)) == []
    assert service["ExecStart"].split()[1] == name.removeprefix("fedsvc-")


def test_the_settings_of_the_environment_are_such_as_there_are() -> None:
    told = environment()
    assert told.keys() <= {Settings.variable(field) for field in Settings.model_fields}
    read_at_start = {"FEDSVC_REDIS_URL_FILE", "FEDSVC_DATABASE_URL_FILE"}
    assert read_at_start < told.keys()
    Settings.from_environment({name: value for name, value in told.items() if name not in read_at_start})
    assert all(unit(name)["Service"]["EnvironmentFile"] == "/etc/fedsvc/environment" for name in UNITS)


def test_a_worker_may_finish_what_is_in_flight() -> None:
    service = unit("fedsvc-worker")["Service"]
    assert float(service["TimeoutStopSec"]) >= Settings.model_fields["shutdown_grace"].default + 15
    assert service["KillMode"] == "mixed"  # the supervisor stops its processes itself


def test_server_and_worker_answer_http_at_different_addresses() -> None:
    words = unit("fedsvc-worker")["Service"]["ExecStart"].split()
    assert words[words.index("--http-listen") + 1] != str(Settings.model_fields["http_listen"].default)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_has_no_rights_and_writes_where_it_may(name: str) -> None:
    service = unit(name)["Service"]
    assert service["User"] == "fedsvc"
    assert service["CapabilityBoundingSet"] == ""
    assert service["ProtectSystem"] == "strict"
    for option in (
        "NoNewPrivileges",
        "PrivateTmp",
        "PrivateDevices",
        "MemoryDenyWriteExecute",
        "ProtectHome",
    ):
        assert service[option] == "yes"
    assert service["LimitCORE"] == "0"


def test_both_units_are_locked_in_alike() -> None:
    own = ("Exec", "Timeout", "Limit")
    server, worker = (
        {key: value for key, value in unit(name)["Service"].items() if not key.startswith(own)}
        for name in UNITS
    )
    assert server == worker


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_every_line(name: str, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here")
    text = (HOME / f"{name}.service").read_text().replace(PROGRAM, "/bin/true")
    file = tmp_path / f"{name}.service"
    file.write_text(text.replace(" fedsvc-server.service", ""))
    done = subprocess.run([program, "verify", str(file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, [line for line in done.stderr.splitlines() if name in line]) == (0, [])
