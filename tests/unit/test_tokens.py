"""Bearer tokens: entries, what is refused, files that change, and rights for every method there is."""

from __future__ import annotations

import errno
import hmac
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import symbol_database
from grpc_health.v1 import health_pb2
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError, PermissionDenied
from fedsvc.server import tokens as module
from fedsvc.server.app import SERVICES
from fedsvc.server.auth import EVERYWHERE, RIGHTS, rights
from fedsvc.server.caller import ANYBODY, Caller, Scope, allowed_origins, caller, serve
from fedsvc.server.tokens import PREFIX, TokenBook, entry_text, new_token, parse_caller, parse_entries
from fedsvc.watched_files import LOOK_EVERY, WatchedFiles

PIEFED = Caller("piefed", frozenset({Scope.DELIVER, Scope.KEYS}), frozenset({"social.example", "::1"}))
ADMIN = Caller("admin", frozenset(Scope), None)
HASH = "ab" * 32


def book(text: str) -> TokenBook:
    return TokenBook(Settings.from_environment({"FEDSVC_TOKENS": text}))


def whose(known: TokenBook, token: str) -> Caller | None:
    return known.identify(known.digest(token))


@pytest.mark.parametrize("known", [PIEFED, ADMIN])
def test_an_entry_says_who_may_do_what(known: Caller) -> None:
    token = new_token()
    (entry,) = parse_entries(entry_text(known, token))
    assert entry.caller == known
    assert token not in entry_text(known, token)


def test_a_token_cannot_be_guessed_and_scanners_know_it() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(token.startswith(PREFIX) and len(token) == len(PREFIX) + 43 for token in made)


def test_several_tokens_of_one_caller_are_valid_at_once_and_no_other_is() -> None:
    old, new, other = new_token(), new_token(), new_token()
    known = book(f"{entry_text(PIEFED, old)} ,\n {entry_text(PIEFED, new)}, {entry_text(ADMIN, other)}")
    assert [whose(known, token) for token in (old, new, other)] == [PIEFED, PIEFED, ADMIN]
    for wrong in ("", old[:-1], old + "x", old.upper(), entry_text(PIEFED, old), "\ud800", "x" * 10_000):
        assert whose(known, wrong) is None


def test_each_token_is_compared_in_constant_time_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [new_token() for _ in range(5)]
    known = book(" ".join(entry_text(PIEFED, token) for token in made))
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, two: bytes) -> bool:
        compared.append((len(one), len(two)))
        return hmac.compare_digest(one, two)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(module, "hmac", Watched)
    for token in (made[0], made[4], "wrong"):
        compared.clear()
        whose(known, token)
        assert compared == [(32, 32)] * 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("piefed", "entry 1 is not NAME:SCOPES:ORIGINS:SHA256"),
        (f"a:deliver:{HASH}", "entry 1 is not NAME"),
        ("a:deliver:*:geheim", "entry 1 does not end with a SHA-256"),
        (f"a:deliver:*:{HASH.upper()}", "entry 1 does not end with a SHA-256"),
        (f"a:deliver:*:{HASH},b:admin:*:{HASH}", "entry 2: the scopes are not some of"),
        (f"a::*:{HASH}", "entry 1: the scopes are not"),
        (f"a:deliver+:*:{HASH}", "entry 1: the scopes are not"),
        (f":deliver:*:{HASH}", "entry 1: the name is not"),
        (f"a/b:deliver:*:{HASH}", "entry 1: the name is not"),
        (f"a:deliver::{HASH}", "entry 1: an origin is not a host name"),
        (f"a:deliver:a.example+:{HASH}", "entry 1: an origin is not a host name"),
        (f"a:deliver:a.example/x:{HASH}", "entry 1: an origin is not a host name"),
        (f"a:deliver:*+a.example:{HASH}", "entry 1: an origin is not a host name"),
        (" , ", "has no entry"),
    ],
)
def test_a_bad_entry_is_named_by_its_place_and_not_shown(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match="FEDSVC_TOKENS") as error:
        book(text)
    assert problem in str(error.value)
    assert "geheim" not in str(error.value)
    assert HASH not in str(error.value)


@given(st.text(max_size=80))
def test_what_is_no_entry_is_refused_by_its_place(text: str) -> None:
    problem, entries = "", []
    try:
        entries = parse_entries(text)
    except ValueError as error:
        problem = str(error)
    assert problem.startswith("entry ") or bool(entries) == bool(text.replace(",", " ").split())


def test_origins_are_written_as_key_ids_have_them() -> None:
    known = parse_caller("a", "deliver", "BÜCHER.example+::1+[::2]")
    assert known.origins == frozenset({"xn--bcher-kva.example", "::1", "::2"})


def test_without_tokens_the_door_is_open_and_an_empty_file_is_not_without_tokens(tmp_path: Path) -> None:
    assert book("").open
    file = tmp_path / "tokens"
    for text in (None, "", "\n"):
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigurationError, match="FEDSVC_TOKENS_FILE"):
            TokenBook(Settings.from_environment({"FEDSVC_TOKENS_FILE": str(file)}))


def test_a_file_that_changes_is_read_again_and_one_that_breaks_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = new_token(), new_token()
    file = tmp_path / "tokens"
    file.write_text(entry_text(PIEFED, first))
    now = 100.0
    monkeypatch.setattr(module, "WatchedFiles", lambda paths: WatchedFiles(paths, lambda: now))
    known = TokenBook(Settings.from_environment({"FEDSVC_TOKENS_FILE": str(file)}))
    replaced = tmp_path / "next"
    replaced.write_text(f"{entry_text(PIEFED, second)}\n{entry_text(ADMIN, new_token())}\n")
    replaced.rename(file)
    assert whose(known, second) is None, "it was looked at just now"
    now += LOOK_EVERY
    assert (whose(known, second), whose(known, first)) == (PIEFED, None)
    for bad in ("", "nonsense", None):
        if bad is None:
            file.unlink()
        else:
            file.write_text(bad)
        now += LOOK_EVERY
        assert (whose(known, second), whose(known, "")) == (PIEFED, None)
        assert not known.open
    file.write_text(entry_text(PIEFED, first))
    now += LOOK_EVERY
    assert (whose(known, first), whose(known, second)) == (PIEFED, None)


def test_a_file_that_cannot_be_read_for_a_moment_is_read_later_although_it_does_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the process has no more files to open, or the file gets its owner after its content."""
    first, second = new_token(), new_token()
    file = tmp_path / "tokens"
    file.write_text(entry_text(PIEFED, first))
    now = 100.0
    monkeypatch.setattr(module, "WatchedFiles", lambda paths: WatchedFiles(paths, lambda: now))
    known = TokenBook(Settings.from_environment({"FEDSVC_TOKENS_FILE": str(file)}))
    file.write_text(f"{entry_text(PIEFED, second)}\n")
    with monkeypatch.context() as patch, capture_logs() as logged:
        patch.setattr(Path, "read_bytes", failing(OSError(errno.EMFILE, "Too many open files")))
        for _ in range(3):
            now += LOOK_EVERY
            assert (whose(known, first), whose(known, second)) == (PIEFED, None)
    assert [entry["event"] for entry in logged] == ["tokens_not_read"], "told once"
    now += LOOK_EVERY
    assert (whose(known, first), whose(known, second)) == (None, PIEFED)


def failing(error: Exception) -> Callable[[Path], bytes]:
    def fail(_: Path) -> bytes:
        raise error

    return fail


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same size")
        os.utime(tmp_path / name / "file", ns=(1, 1))
    (tmp_path / "now").symlink_to("one")
    now = 0.0
    watched = WatchedFiles([str(tmp_path / "now" / "file"), ""], lambda: now)
    now += LOOK_EVERY
    assert not watched.changed()
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "now")
    assert not watched.changed()
    now += LOOK_EVERY
    assert watched.changed()
    watched.keep()
    now += LOOK_EVERY
    assert not watched.changed()


def methods() -> list[str]:
    pool = symbol_database.Default().pool
    return [
        f"/{service}/{method.name}"
        for service in SERVICES
        for method in pool.FindServiceByName(service).methods
    ]


@pytest.mark.parametrize("method", methods())
def test_every_method_says_who_may_call_it(method: str) -> None:
    needed = rights(method)
    assert needed
    if "DeliveryService" in method:
        assert Scope.DELIVER in needed
        assert Scope.KEYS not in needed
    if "KeyService" in method:
        assert needed == {Scope.KEYS}


def test_no_right_is_given_to_what_is_not_there() -> None:
    named = {method for method in RIGHTS if not method.endswith("/")} | EVERYWHERE
    assert named <= set(methods())


def test_what_steers_the_queue_is_for_operators_and_what_nobody_knows_is_for_nobody() -> None:
    for method in EVERYWHERE:
        assert rights(method) == {Scope.OPERATE}
    for unknown in ("/fedsvc.v1.Other/Get", "/fedsvc.v2.DeliveryService/QueueActivity", "", "/", "x"):
        assert not rights(unknown)
    health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    assert not rights(f"/{health}/Check"), "is let in before anybody asks for rights"


def test_a_caller_speaks_for_its_origins_only() -> None:
    PIEFED.check_origin("signing_key.key_id", "social.example")
    ADMIN.check_origin("signing_key.key_id", "other.example")
    for other in ("other.example", "sub.social.example", "social.example.evil.example", ""):
        with pytest.raises(PermissionDenied, match=r"signing_key\.key_id: piefed may not sign for"):
            PIEFED.check_origin("signing_key.key_id", other)
    assert (caller(), allowed_origins()) == (ANYBODY, None)
    serve(PIEFED)
    assert (caller(), allowed_origins()) == (PIEFED, PIEFED.origins)
    serve(ANYBODY)
