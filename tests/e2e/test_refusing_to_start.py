"""What does not start says why, in one line that names the setting."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from servers.processes import Fedsvc, fedsvc

ANYWHERE = {"FEDSVC_LISTEN": "127.0.0.1:0", "FEDSVC_HTTP_LISTEN": "127.0.0.1:0"}


@pytest.mark.parametrize("command", [("dev", "--data-dir", "data"), ("server",)])
@pytest.mark.parametrize("setting", ["FEDSVC_LISTEN", "FEDSVC_HTTP_LISTEN", "FEDSVC_HEALTH_LISTEN"])
def test_a_port_that_is_taken_is_one_line_before_anything_is_started(
    command: tuple[str, ...],
    setting: str,
    tmp_path: Path,
    encryption_key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        places = ANYWHERE | {setting: taken}
        done = fedsvc(*command, FEDSVC_KEY_ENCRYPTION_KEYS=encryption_key, **places)
    assert (done.returncode, done.stderr) == (1, f"fedsvc: {setting}: {taken} is taken\n")


def test_the_last_line_says_why_a_part_did_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cert.pem").write_text("nonsense\n")
    files = {"FEDSVC_TLS_CERT": "cert.pem", "FEDSVC_TLS_KEY": "cert.pem"}
    done = fedsvc("dev", "--data-dir", "data", **ANYWHERE, **files)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fedsvc: the server does not become ready: FEDSVC_TLS_")


def test_dev_says_at_once_that_its_queue_was_made_with_other_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Fedsvc(
        tmp_path, "dev", "--data-dir", "data", settings=ANYWHERE | {"FEDSVC_PARTITIONS": "4"}
    ) as made:
        made.ready()
    monkeypatch.chdir(tmp_path)
    done = fedsvc("dev", "--data-dir", "data", **ANYWHERE, FEDSVC_PARTITIONS="8")
    # the worker's processes are started again and again until they are given up: nobody waits for that
    assert (done.returncode, "given_up" in done.stderr) == (1, False)
    problem = "FEDSVC_PARTITIONS: this queue was made with 4 partitions, not 8"
    assert done.stderr.splitlines()[-1] == f"fedsvc: the server does not become ready: {problem}"


def test_an_unknown_setting_is_an_error_that_names_it() -> None:
    done = fedsvc("server", FEDSVC_CONCURENCY="8")
    assert (done.returncode, done.stderr) == (1, "fedsvc: FEDSVC_CONCURENCY: unknown setting\n")


@pytest.mark.parametrize("command", ["server", "worker"])
def test_server_and_worker_refuse_to_start_without_key_encryption_keys(command: str) -> None:
    done = fedsvc(command)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "FEDSVC_KEY_ENCRYPTION_KEYS: is not set; private keys are only stored encrypted"
    )
