from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from fedsvc import logs
from fedsvc.config import Settings
from fedsvc.logs import REDACTED, redact, redact_text

PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSj\n-----END PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (f"key: {PEM}.", f"key: {REDACTED}."),
        (f"cut {PEM[:60]}", f"cut {REDACTED}"),
        ("redis://user:geheim@h:6379/0", f"redis://{REDACTED}@h:6379/0"),
        ("at postgresql://u:p@h/db and sqlite:///x", f"at postgresql://{REDACTED}@h/db and sqlite:///x"),
        ("https://a.example/@ada", "https://a.example/@ada"),
        ("plain", "plain"),
    ],
)
def test_secrets_are_taken_out_of_text(text: str, cleaned: str) -> None:
    assert redact_text(text) == cleaned


def test_fields_with_secret_names_are_taken_out_at_any_depth() -> None:
    event = redact(
        None,
        "",
        {
            "private_key": "x", "token": "t", "Authorization": "Bearer t", "key": "kept", "count": 3,
            "inner": {"password": "p", "list": [{"secret": "s"}, PEM]}, "raw": PEM.encode(),
        },
    )  # fmt: skip
    told = json.dumps(event, default=str)
    for secret in ("Bearer", '"p"', '"s"', "MIIE", '"x"', '"t"'):
        assert secret not in told
    assert event["key"] == "kept"
    assert event["count"] == 3


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_log_line_shows_a_key_even_in_an_exception(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings.from_environment({"FEDSVC_LOG_FORMAT": form}), "test")
    log = structlog.get_logger("x")
    try:
        raise ValueError(f"bad key {PEM}")
    except ValueError as error:
        log.error("it_failed", exc_info=error, url="redis://u:geheim@h")
        logging.getLogger("other").error("also %s", PEM, exc_info=error)
    told = capsys.readouterr().err
    assert "it_failed" in told
    assert "also" in told
    assert "MIIE" not in told
    assert "geheim" not in told
    assert REDACTED in told


def test_what_grpc_tells_of_metadata_that_is_no_text_is_left_out_and_all_else_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(Settings.from_environment({}), "server")
    for _ in range(2):  # as many servers begin
        logs.leave_out_metadata()
    log = logging.getLogger("grpc._cython.cygrpc")
    try:
        b"Bearer \xff".decode()
    except UnicodeDecodeError as error:
        log.error("it quotes what it cannot read", exc_info=error)
    log.error("another thing went wrong", exc_info=ValueError("x"))
    log.error("and a third")
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["another thing went wrong", "and a third"]
    assert len(log.filters) == 1


def test_a_line_of_json_names_process_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings.from_environment({}), "worker")
    structlog.get_logger("x").info("stopped", delivery="1-2")
    structlog.get_logger("x").debug("not told")
    (line,) = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert (event["process"], event["level"], event["event"]) == ("worker", "info", "stopped")
    assert event["timestamp"].endswith("Z")
