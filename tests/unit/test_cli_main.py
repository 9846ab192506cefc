"""The command line without a server: what it says when something is wrong."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from fedsvc_client import FanOut, FedsvcClient, ItemError, Operation, RejectedInbox, Schedule, Unavailable
from servers.scripted import scripted

from fedsvc.archive import migrate
from fedsvc.cli import dead, enqueue, local_checks, output, schedules, stats
from fedsvc.cli.main import cli, main
from fedsvc.config import Settings
from fedsvc.domain.keys import KeyCipher
from fedsvc.errors import ConfigurationError
from fedsvc.queue.link import Link
from fedsvc.server.caller import Caller
from fedsvc.server.tokens import entry_text, new_token
from fedsvc.v1 import operations_service_pb2, types_pb2

PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRPC_VERBOSITY", "ERROR")  # as commands leave it behind, other tests would have it


def fedsvc(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize(
    ("command", "option", "enum"),
    [
        ("deliveries list", "states", types_pb2.DeliveryState),
        ("hosts list", "states", operations_service_pb2.HostState),
        ("schedules create", "task", operations_service_pb2.MaintenanceTask),
    ],
)
def test_all_that_the_contract_knows_can_be_asked_for(command: str, option: str, enum: Any) -> None:
    group, name = command.split()
    found: Any = getattr(importlib.import_module(f"fedsvc.cli.{group}"), group).commands[name]
    (chosen,) = [param for param in found.params if param.name == option]
    prefix = re.sub(r"(?<=.)(?=[A-Z])", "_", enum.DESCRIPTOR.name).lower()
    assert [f"{prefix}_{choice}" for choice in chosen.type.choices] == [n.lower() for n in enum.keys()[1:]]


def test_help_needs_none_of_the_heavy_libraries() -> None:
    heavy = "{'grpc', 'aiohttp', 'sqlalchemy', 'redis', 'fedsvc_client', 'rich'}"
    program = f"""
import sys
from fedsvc.cli.main import main
try:
    main(["--help"])
finally:
    assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "dev" in done.stdout


def test_a_target_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedsvc("stats", "--target", "a.example:1,b.example:2") == 1
    assert capsys.readouterr().err.startswith("fedsvc: --target: several servers are told by their IP")


def test_what_an_error_quotes_does_nothing_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def connect(_: str | None) -> None:
        raise click.ClickException("no host a\x1b]0;b\x07\u202ec\nd\x9b2J")

    monkeypatch.setattr(stats, "connect", connect)
    assert fedsvc("stats") == 1
    assert capsys.readouterr().err == "fedsvc: no host a\ufffd]0;b\ufffd\ufffdc d\ufffd2J\n"


SEND: tuple[str, ...] = (
    *("schedules", "create", "weekly", "--cron", "0 9 * * MON"),
    *("--activity", "weekly.json", "--inboxes-file", "followers", "--key-id", "https://me.example/u/ada#k"),
)


def test_of_a_file_of_inboxes_none_is_left_out_however_many_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inboxes = [f"https://a.example/{number:0100}" for number in range(200_000)]
    (tmp_path / "followers").write_text("\n".join(inboxes))
    (tmp_path / "weekly.json").write_text("{}")
    made: list[Schedule] = []

    def create(wanted: Schedule) -> Schedule:
        made.append(wanted)
        return wanted

    client = SimpleNamespace(create_schedule=create)
    monkeypatch.setattr(schedules, "connect", lambda _: contextlib.nullcontext(client))
    assert fedsvc(*SEND) == 0
    assert made[0].fan_out is not None
    assert list(made[0].fan_out.inboxes) == inboxes


def test_a_file_of_inboxes_that_is_no_text_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "followers").write_bytes(b"https://a.example/\xe9")
    (tmp_path / "weekly.json").write_text("{}")
    assert fedsvc(*SEND) == 1
    assert capsys.readouterr().err == "fedsvc: --inboxes-file: followers is not text in UTF-8\n"


@pytest.mark.parametrize("setting", ["FEDSVC_TOKEN", "FEDSVC_TOKEN_FILE"])
def test_a_token_of_several_lines_is_one_line_that_names_the_setting(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokens").write_text("secret-one\nsecret-two\n")
    monkeypatch.setenv(setting, "tokens" if setting.endswith("FILE") else "secret-one\nsecret-two")
    assert fedsvc("stats", "--target", "127.0.0.1:1") == 1
    told = capfd.readouterr().err
    assert told == f"fedsvc: {setting}: is no token: there is more than one word or line in it\n"


def test_authorities_that_are_none_are_one_line_that_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ca.pem").write_text("nonsense\n")
    for name, problem in (
        ("ca.pem", " holds no certificates in PEM"),
        ("none.pem", " cannot be read: No such file or directory"),
    ):
        monkeypatch.setenv("FEDSVC_TLS_CA", name)
        assert fedsvc("stats", "--target", "127.0.0.1:1") == 1
        assert capfd.readouterr().err == f"fedsvc: FEDSVC_TLS_CA: {name}{problem}\n"


def test_a_key_file_that_is_no_text_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key.der").write_bytes(b"\x30\x82\x04\xbd")
    (tmp_path / "like.json").write_text("{}")
    keys = ("--key-id", "https://me.example/key", "--key-file", "key.der")
    assert fedsvc("enqueue", "like.json", "--inbox", "https://h.example/inbox", *keys) == 1
    assert capsys.readouterr().err == "fedsvc: --key-file: key.der is not PEM (text)\n"


def test_an_error_of_the_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: Settings) -> str:
        raise OSError(28, "No space left on device", "archive.db")

    monkeypatch.setattr(migrate, "upgrade", full)
    assert fedsvc("migrate") == 1
    assert capsys.readouterr().err == "fedsvc: archive.db: No space left on device\n"


def test_the_traceback_of_a_bug_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def buggy(_: Settings) -> str:
        raise ValueError(f"odd: {PEM} at redis://:pass@word@h")

    monkeypatch.setattr(migrate, "upgrade", buggy)
    with pytest.raises(ValueError, match="odd") as bug:
        main(["migrate"])
    sys.excepthook(bug.type, bug.value, bug.tb)
    told = capsys.readouterr().err
    assert "ValueError: odd: [redacted] at redis://[redacted]@h" in told
    assert "MIIE" not in told
    assert "word" not in told


def test_a_bad_redis_url_is_refused_without_showing_any_of_its_password() -> None:
    with pytest.raises(ConfigurationError) as refused:
        Link("redis://:geh/eim@h:6379")
    assert "geh" not in str(refused.value)


def test_what_others_wrote_is_no_markup_in_the_list_of_dead_letters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    letter = SimpleNamespace(
        delivery_id="12-1795444000000000",
        complete_time=datetime(2026, 1, 2, tzinfo=UTC),
        activity_type="[/Like]",
        reason="TIMEOUT",
        http_status=0,
        attempts=3,
        inbox="https://[fe80::1]/:smile:/inbox",
    )
    client = SimpleNamespace(
        list_dead_letters=lambda *_, **__: SimpleNamespace(dead_letters=[letter], next_page_token="")
    )

    def connect(_: str | None) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext(client)

    monkeypatch.setattr(dead, "connect", connect)
    monkeypatch.setenv("COLUMNS", "160")
    assert fedsvc("dead", "list") == 0
    told = capsys.readouterr().out
    assert "https://[fe80::1]/:smile:/inbox" in told
    assert "[/Like]" in told
    monkeypatch.setenv("COLUMNS", "60")
    assert fedsvc("dead", "list") == 0
    assert "12-1795444000000000" in capsys.readouterr().out


def answering(monkeypatch: pytest.MonkeyPatch, module: Any, **calls: Any) -> None:
    """Commands of `module` talk to a client that gives these answers."""
    client = SimpleNamespace(**{name: lambda *_, _told=told, **__: _told for name, told in calls.items()})
    monkeypatch.setattr(module, "connect", lambda _: contextlib.nullcontext(client))


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_inboxes_that_were_rejected_are_an_error_too(
    as_json: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused = RejectedInbox(1, "gopher", ItemError("INVALID_INBOX", "is not an absolute URL", "inboxes[1]"))
    answering(monkeypatch, enqueue, fan_out=FanOut("https://me.example/1", 1, 0, [refused]))
    (tmp_path / "like.json").write_text("{}")
    inboxes = ("--inbox", "https://h.example/inbox", "--inbox", "gopher")
    assert fedsvc("enqueue", "like.json", *inboxes, "--key-id", "https://me.example/key", *as_json) == 1
    told = capsys.readouterr()
    assert "gopher" in told.out
    assert told.err == "fedsvc: 1 of 2 inboxes was rejected\n"


def test_an_operation_that_ended_badly_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Operation(
        "0a", "replay", "anybody", None, None, 3, 1, 0, False, False, True, "QueueCorrupt", None, 0
    )
    answering(monkeypatch, dead, replay_dead_letters=ended)
    assert fedsvc("dead", "replay", "--all", "--json") == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["error"] == "QueueCorrupt"
    assert told.err == "fedsvc: replay 0a: QueueCorrupt\n"
    assert fedsvc("dead", "replay", "--all") == 1
    assert capsys.readouterr().err == "fedsvc: replay 0a: QueueCorrupt\n", "one line, and no bar of progress"


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_an_operation_that_takes_long_says_how_far_it_is_where_no_bar_shows_it(
    as_json: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = Operation("0a", "replay", "anybody", None, None, 5000, 0, 0, False, False, False, "", None, 0)
    looks = 0

    def get_operation(_: str) -> Operation:
        nonlocal looks
        looks += 1
        return replace(begun, completed=100 * looks, done=looks == 50)

    client = SimpleNamespace(replay_dead_letters=lambda **_: begun, get_operation=get_operation)
    monkeypatch.setattr(dead, "connect", lambda _: contextlib.nullcontext(client))
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert fedsvc("dead", "replay", "--all", *as_json) == 0
    told = capsys.readouterr()
    if as_json:
        assert (json.loads(told.out)["completed"], told.err) == (5000, "")
    else:
        assert told.out == "5,000 of 5,000 replayed\n"
        assert told.err == "replay 0a: 2,000 of 5,000\nreplay 0a: 4,000 of 5,000\n"


@pytest.mark.parametrize("interval", ["1e300", "0.5", "nan"])
def test_an_interval_that_no_schedule_has_is_a_usage_error(
    interval: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedsvc("schedules", "create", "x", "--interval", interval, "--task", "cleanup") == 2
    assert "--interval" in capsys.readouterr().err


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        elif not command.hidden:
            yield " ".join((*path, name)), command


class Watched:
    """A client whose server goes away twice, and comes back in between."""

    def __init__(self, figures: Any) -> None:
        self.turns: list[Any] = [[figures], [], [], [figures], [], KeyboardInterrupt()]

    def watch_queue_stats(self) -> Iterator[Any]:
        turn = self.turns.pop(0)
        if isinstance(turn, BaseException):
            raise turn
        yield from turn
        raise Unavailable("gone")


@pytest.mark.parametrize("arguments", [("--json",), ()])
def test_a_server_that_goes_away_does_not_end_the_watch_which_says_so(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted() as script, FedsvcClient(script.target) as client:
        watched = Watched(client.get_queue_stats())
    monkeypatch.setattr(stats, "connect", lambda target: contextlib.nullcontext(watched))
    assert fedsvc("stats", "--watch", *arguments) == 0
    told = capsys.readouterr()
    assert told.err == "fedsvc: the server does not answer; it is tried again until Ctrl-C\n" * 2
    if arguments:
        assert len([json.loads(line) for line in told.out.splitlines()]) == 2
    else:
        assert told.out.count("held up by") == 2, "a pipe gets figures as they come"


def test_old_figures_on_a_screen_are_said_to_be_old(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted() as script, FedsvcClient(script.target) as client:
        watched: Any = Watched(client.get_queue_stats())
    monkeypatch.setattr("rich.live.Live.update", lambda live, what: output.show(what))
    with contextlib.suppress(KeyboardInterrupt):
        stats._show_for_ever(watched)
    told = capsys.readouterr().out
    away = "Old figures: the server does not answer; it is tried again until Ctrl-C.\n"
    assert [screen.count("held up by") for screen in told.split(away)] == [1, 1, 1, 2, 1, 1]


def test_a_watch_that_begins_without_a_server_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = Watched(None)
    watched.turns = [[]]
    monkeypatch.setattr(stats, "connect", lambda target: contextlib.nullcontext(watched))
    assert fedsvc("stats", "--watch", "--json") == 1
    assert capsys.readouterr().err == "fedsvc: gone\n"


def test_every_command_takes_json() -> None:
    assert [
        name
        for name, command in commands(cli)
        if not any("--json" in parameter.opts for parameter in command.params)
    ] == []


def test_a_script_for_a_shell_is_told_to_programs_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedsvc("completion", "zsh", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["shell"], "_FEDSVC_COMPLETE=zsh_complete" in told["script"]) == ("zsh", True)


@pytest.mark.parametrize("command", ["server", "worker"])
def test_what_runs_logs_in_json_if_it_is_told_so(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configured: list[str] = []

    def stop(settings: Settings, _: str) -> None:
        configured.append(settings.log_format)
        raise click.Abort

    monkeypatch.setattr("fedsvc.logs.configure", stop)
    monkeypatch.setenv("FEDSVC_KEY_ENCRYPTION_KEYS", KeyCipher.generate())
    monkeypatch.setenv("FEDSVC_LOG_FORMAT", "console")
    assert (fedsvc(command), fedsvc(command, "--json")) == (1, 1)
    assert configured == ["console", "json"]


NEW_TOKEN = "tokens new a --scope deliver --origin b.example"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (f"{NEW_TOKEN} >/dev/full", 1, ["fedsvc: No space left on device"]),
        (f"{NEW_TOKEN} >&-", 0, []),
        ("dead purge --host a.example <&-", 2, ["Error: give --yes: nobody can be asked here"]),
    ],
)
def test_streams_that_are_full_or_closed_are_no_defect(
    words: str, code: int, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # buffers are written once more at exit
    script = f'exec "$0" -m fedsvc {words}'
    done = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (code, said)
    assert "Traceback" not in done.stderr


def test_a_server_has_no_reflection_unless_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def serve(*_: Any, reflect: bool, **__: Any) -> int:
        told.append(reflect)
        return 0

    monkeypatch.setattr("fedsvc.server.app.run", serve)
    monkeypatch.setattr("fedsvc.logs.configure", lambda *_: None)
    monkeypatch.setenv("FEDSVC_KEY_ENCRYPTION_KEYS", KeyCipher.generate())
    listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    assert (fedsvc("server", *listen), fedsvc("server", *listen, "--reflection")) == (0, 0)
    assert told == [False, True]


_SCHEDULE = ("schedules", "create", "s", "--interval", "60", "--activity")


@pytest.mark.parametrize(
    ("arguments", "argument", "most"),
    [
        (("enqueue", "/dev/zero"), "ACTIVITY", "16.0 MiB"),
        (("enqueue", "like.json", "--key-file", "/dev/zero"), "--key-file", "64.0 KiB"),
        (("keys", "put", "https://me.example/key", "--key-file", "/dev/zero"), "--key-file", "64.0 KiB"),
        ((*_SCHEDULE, "/dev/zero"), "--activity", "16.0 MiB"),
        ((*_SCHEDULE, "like.json", "--inboxes-file", "/dev/zero"), "--inboxes-file", "64.0 MiB"),
    ],
    ids=["activity", "key", "registered key", "template", "inboxes"],
)
def test_a_file_without_an_end_is_read_no_further_than_it_can_be_meant(
    arguments: tuple[str, ...], argument: str, most: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("like.json").write_bytes(b"{}")
    if arguments[0] == "enqueue":
        arguments += ("--inbox", "https://h.example/inbox", "--key-id", "https://me.example/key")
    assert fedsvc(*arguments) == 1
    assert capsys.readouterr().err == f"fedsvc: {argument}: /dev/zero has more than {most}\n"


@pytest.mark.parametrize(("callers", "told"), [(1, "1 has a token"), (2, "2 have tokens")])
def test_the_doctor_counts_callers_as_people_do(callers: int, told: str) -> None:
    entries = [entry_text(Caller(f"caller-{n}"), new_token()) for n in range(callers)]
    settings = Settings.from_environment({"FEDSVC_TOKENS": " ".join(entries)})
    assert local_checks.callers(settings).found == told
