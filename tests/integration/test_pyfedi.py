"""The drop-in for PyFedi: what travels, what callers are told, and what failures look like to them."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flask
import pytest
from fedsvc_client import (
    ConfigurationError,
    FedsvcError,
    InvalidRequest,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from fedsvc_client import pyfedi as drop_in
from grpc import StatusCode
from servers.certificates import authority
from servers.scripted import Refused, Scripted, scripted

KEY_ID = "https://me.example/u/ada#main-key"
INBOX = "https://lemmy.example/inbox"
LIKE = {"id": "https://me.example/1", "type": "Like", "actor": "https://me.example/u/ada", "object": "o"}
OURS = ("FEDSVC_TARGET", "FEDSVC_TOKEN", "FEDSVC_TOKEN_FILE", "FEDSVC_TLS_CA", "FULL_AP_CONTEXT")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    with scripted() as script:
        monkeypatch.setenv("FEDSVC_TARGET", script.target)
        yield script
        drop_in.on_refusal(None)


@pytest.fixture
def refusals() -> list[drop_in.Refusal]:
    told: list[drop_in.Refusal] = []
    drop_in.on_refusal(told.append)
    return told


def send(uri: Any = INBOX, body: Any = LIKE, **more: Any) -> bool:
    return drop_in.send_post_request(uri, body, "pem", KEY_ID, **more)


def test_it_returns_true_once_the_server_has_it_whatever_new_task_says(script: Scripted) -> None:
    for more in ({}, {"new_task": False}, {"retries": 7, "timeout": 5}, {"method": "post"}):
        assert send(**more) is True
    first = script.calls[0]
    assert (first.inbox, first.signing_key.key_id, first.signing_key.private_key_pem) == (
        INBOX,
        KEY_ID,
        "pem",
    )
    assert len({call.request_id for call in script.calls}) == 4
    assert first.options.content_type == "", "the usual content type is the server's default"
    send(content_type="application/ld+json")
    assert script.calls[-1].options.content_type == "application/ld+json"


def test_an_activity_without_context_gets_piefed_s_and_the_caller_s_dict_stays(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = dict(LIKE)
    send(body=body)
    assert "@context" not in body
    sent = json.loads(script.calls[-1].activity)
    plain = ["https://www.w3.org/ns/activitystreams", "https://w3id.org/security/v1"]
    assert sent == {"@context": plain, **LIKE}
    monkeypatch.setenv("FULL_AP_CONTEXT", "1")
    send(body=body)
    *begin, terms = json.loads(script.calls[-1].activity)["@context"]
    assert begin == plain
    assert terms["stickied"] == "lemmy:stickied"
    assert terms["moderators"] == {"@type": "@id", "@id": "lemmy:moderators"}
    assert terms["expires"] == "as:endTime"
    assert len(terms) == 16
    send(body={**LIKE, "@context": "mine"})
    assert json.loads(script.calls[-1].activity)["@context"] == "mine"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"uri": ""}, "no inbox"),
        ({"uri": None}, "no inbox"),
        ({"body": None}, "no activity"),
        ({"body": json.dumps(LIKE)}, "the activity is no dict but str"),
        ({"body": {**LIKE, "x": float("nan")}}, "cannot be written as JSON"),
        ({"body": {**LIKE, "type": "Bad"}}, "is not what it should be"),
    ],
    ids=["empty inbox", "no inbox", "no activity", "text", "no JSON", "refused by the server"],
)
def test_what_can_never_be_sent_is_told_to_the_application_and_is_no_error_to_callers(
    script: Scripted, refusals: list[drop_in.Refusal], given: dict[str, Any], words: str
) -> None:
    def judge(request: Any) -> None:
        if b'"Bad"' in request.activity:
            raise Refused(StatusCode.INVALID_ARGUMENT, "is not what it should be", field="activity")

    script.judge = judge
    assert send(**given) is True
    (refusal,) = refusals
    assert words in str(refusal.error)
    assert refusal.uri == given.get("uri", INBOX)
    assert not script.accepted


def test_without_a_callback_a_refusal_is_logged_without_the_key(
    script: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    drop_in.send_post_request("", LIKE, "SECRET PEM", KEY_ID)
    assert "https://me.example/1" in caplog.text
    assert "SECRET" not in caplog.text
    caplog.clear()
    drop_in.send_post_request(INBOX, {**LIKE, "id": "https://me.example/\ud800"}, "pem", KEY_ID)
    assert b"https://me.example/" in caplog.text.encode(), "a file takes it"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.UNAVAILABLE, Unavailable),
        (StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted),
        (StatusCode.UNAUTHENTICATED, PermissionDenied),
    ],
)
def test_what_callers_must_not_miss_is_raised(
    script: Scripted, refusals: list[drop_in.Refusal], code: StatusCode, kind: type[FedsvcError]
) -> None:
    def judge(request: Any) -> None:
        raise Refused(code, "no")

    script.judge = judge
    with pytest.raises(kind) as raised:
        send(timeout=0.3)
    assert raised.value.request_id == script.calls[0].request_id, "to repeat it by"
    assert not refusals


@pytest.mark.parametrize("timeout", [0, -1, (5, 10), "10", float("nan")])
def test_a_timeout_that_is_none_costs_no_activity(
    script: Scripted, refusals: list[drop_in.Refusal], timeout: Any
) -> None:
    with pytest.raises(InvalidRequest, match="timeout must be a number"):
        send(timeout=timeout)
    with pytest.raises(InvalidRequest, match="timeout must be a number"):
        drop_in.fan_out(LIKE, [INBOX], "pem", KEY_ID, timeout=timeout)
    with pytest.raises(InvalidRequest, match="request_id is no text but int"):
        drop_in.fan_out(LIKE, [INBOX], "pem", KEY_ID, request_id=5)  # type: ignore[arg-type]
    assert not refusals


def test_it_delivers_by_post_only(script: Scripted) -> None:
    with pytest.raises(ValueError, match="delivered by POST"):
        send(method="get")


def test_an_announce_goes_to_each_inbox_once_and_refused_ones_are_told(
    script: Scripted, refusals: list[drop_in.Refusal]
) -> None:
    instances = [SimpleNamespace(inbox=f"https://h{n}.example/inbox") for n in range(3)]
    places = [*instances, SimpleNamespace(inbox=None), instances[0], "https://h9.example/inbox", "", "gopher"]
    told = drop_in.fan_out(LIKE, places, "pem", KEY_ID)
    (call,) = script.calls
    assert list(call.inboxes) == [*(i.inbox for i in instances), "https://h9.example/inbox", "gopher"]
    assert (told.accepted, told.duplicates, [r.inbox for r in told.rejected]) == (4, 0, ["gopher"])
    assert [r.index for r in told.rejected] == [7], "its index among what was given"
    assert [r.uri for r in refusals] == ["gopher"]
    assert isinstance(refusals[0].error, InvalidRequest)
    assert str(refusals[0].error) == "inboxes[7]: is no inbox"
    assert refusals[0].error.reason == "INVALID_INBOX"
    assert [(v.field, v.description) for v in refusals[0].error.violations] == [("inboxes[7]", "is no inbox")]
    assert "@context" in json.loads(call.activity)
    assert drop_in.fan_out(LIKE, [], "pem", KEY_ID).accepted == 0
    assert len(script.calls) == 1, "nobody to send to is no call"


def test_more_inboxes_than_a_call_takes_are_several_calls_that_can_be_repeated(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsvc_client.pyfedi._sending.LARGEST_FAN_OUT", 4)
    inboxes = [f"https://h{n}.example/inbox" for n in range(10)]
    told = drop_in.fan_out(LIKE, iter(inboxes), "pem", KEY_ID, request_id="mine")
    assert [len(call.inboxes) for call in script.calls] == [4, 4, 2]
    assert [call.request_id for call in script.calls] == ["mine", "mine.1", "mine.2"]
    assert (told.accepted, told.duplicates) == (10, 0)
    again = drop_in.fan_out(LIKE, iter(inboxes), "pem", KEY_ID, request_id="mine")
    assert (again.accepted, again.duplicates) == (0, 10)


def test_a_long_name_of_a_fan_out_of_several_calls_has_no_call_refused(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsvc_client.pyfedi._sending.LARGEST_FAN_OUT", 1)
    inboxes = [f"https://h{n}.example/inbox" for n in range(3)]
    drop_in.fan_out(LIKE, inboxes, "pem", KEY_ID, request_id="n" * 128)
    names = [call.request_id for call in script.calls]
    assert names[0] == "n" * 128
    assert len(set(names)) == 3
    assert max(map(len, names)) == 128
    assert drop_in.fan_out(LIKE, inboxes, "pem", KEY_ID, request_id="n" * 128).duplicates == 3


def test_a_refused_inbox_has_its_index_among_all_not_in_its_call(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsvc_client.pyfedi._sending.LARGEST_FAN_OUT", 4)
    inboxes = [f"https://h{n}.example/inbox" for n in range(10)]
    inboxes[5] = "gopher"
    told = drop_in.fan_out(LIKE, [None, *inboxes], "pem", KEY_ID)
    assert [(r.index, r.inbox, r.error.field) for r in told.rejected] == [(6, "gopher", "inboxes[6]")]


@pytest.mark.parametrize(
    ("inboxes", "words"),
    [
        (INBOX, "inboxes must be several, not str"),
        (None, "inboxes must be several, not NoneType"),
        ([INBOX, {"inbox": INBOX}], r"inboxes\[1\] is no text but dict"),
        ([SimpleNamespace(inbox=5)], r"inboxes\[0\] is no text but int"),
    ],
)
def test_inboxes_that_are_none_are_not_left_out_in_silence(
    script: Scripted, inboxes: Any, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        drop_in.fan_out(LIKE, inboxes, "pem", KEY_ID)
    assert not script.calls


def test_a_fan_out_of_several_calls_is_repeated_under_the_name_that_its_error_tells(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsvc_client.pyfedi._sending.LARGEST_FAN_OUT", 4)
    inboxes = [f"https://h{n}.example/inbox" for n in range(10)]

    def refuse_the_second(request: Any) -> None:
        if request.request_id.endswith(".1"):
            raise Refused(StatusCode.RESOURCE_EXHAUSTED, "not now", reason="RATE_LIMITED")

    script.judge = refuse_the_second
    with pytest.raises(ResourceExhausted, match="not now") as failed:
        drop_in.fan_out(LIKE, inboxes, "pem", KEY_ID)
    script.judge = lambda request: None
    told = drop_in.fan_out(LIKE, inboxes, "pem", KEY_ID, request_id=failed.value.request_id)
    assert (told.accepted, told.duplicates) == (6, 4)


def test_the_older_producer_serves_code_that_awaits_and_code_that_does_not(script: Scripted) -> None:
    producer = drop_in.get_producer()
    assert producer is drop_in.get_producer()
    name = producer.queue_activity(LIKE, destination=INBOX, private_key="pem", key_id=KEY_ID, request_id="r")
    assert isinstance(name, str)

    async def older() -> tuple[str, dict[str, Any]]:
        named = await producer.queue_activity(
            LIKE, priority=SimpleNamespace(value="bulk"), destination=INBOX, key_id=KEY_ID, request_id="r"
        )
        return named, await producer.get_queue_stats()

    again, stats = asyncio.run(older())
    assert again == name
    assert [call.options.priority for call in script.calls] == [0, 3]
    first = script.calls[0].signing_key
    assert (first.private_key_pem, first.key_id) == ("pem", KEY_ID)
    producer.queue_activity(LIKE, "RETRY", INBOX)
    assert (script.calls[-1].options.priority, script.calls[-1].signing_key.key_id) == (0, "")
    assert stats["urgent"] == {"length": 3, "oldest_age": 1.5}
    assert (stats["pending"], stats["retry"]) == (3, 1)
    with pytest.raises(InvalidRequest, match="destination"):
        producer.queue_activity(LIKE)


def test_flask_s_configuration_comes_before_the_environment(
    script: Scripted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("from a file\n")
    monkeypatch.setenv("FEDSVC_TOKEN", "of the environment")
    app = flask.Flask("app")
    app.config["FEDSVC_TOKEN_FILE"] = str(tmp_path / "token")
    app.config["FULL_AP_CONTEXT"] = True
    with app.app_context():
        send()
    send()
    assert script.tokens == ["Bearer from a file", "Bearer of the environment"]
    assert [len(json.loads(call.activity)["@context"]) for call in script.calls] == [3, 2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"FEDSVC_TARGET": ""}, "FEDSVC_TARGET is not set"),
        ({"FEDSVC_TOKEN_FILE": "/nonexistent"}, "FEDSVC_TOKEN_FILE: /nonexistent"),
        ({"FEDSVC_TOKEN_FILE": __file__}, "FEDSVC_TOKEN_FILE: this is no token"),
        ({"FEDSVC_TOKEN": "two\nlines"}, "FEDSVC_TOKEN: this is no token"),
        ({"FEDSVC_TARGET": "a.example:1,b.example:1"}, "FEDSVC_TARGET: several servers"),
        ({"FEDSVC_TLS_CA": "/nonexistent"}, "FEDSVC_TLS_CA: /nonexistent cannot be read"),
        ({"FEDSVC_TLS_CA": "/dev/null"}, "FEDSVC_TLS_CA: /dev/null holds nothing in PEM"),
        ({"FEDSVC_CLIENT_TIMEOUT": "soon"}, "FEDSVC_CLIENT_TIMEOUT: 'soon'"),
        ({"FEDSVC_CLIENT_TLS": "perhaps"}, "FEDSVC_CLIENT_TLS"),
        ({"FEDSVC_CLIENT_CERT": str(authority("of a server").file)}, "belong together"),
    ],
)
def test_a_bad_setting_is_named(
    script: Scripted, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], words: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=words):
        send()


def test_a_token_that_is_rotated_again_and_again_leaves_no_connections(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = []
    for number in range(30):
        monkeypatch.setenv("FEDSVC_TOKEN", f"token {number}")
        send()
        clients.append(weakref.ref(drop_in.get_client()))
    assert drop_in.get_client() is clients[-1](), "it is made once"
    gc.collect()
    assert sum(client() is not None for client in clients) <= 8
    assert script.tokens == [f"Bearer token {number}" for number in range(30)]


def test_a_configuration_does_not_show_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsvc_client import Configuration

    read: Callable[..., Configuration] = Configuration.read
    found = read({"FEDSVC_TARGET": "fedsvc:50051", "FEDSVC_TOKEN": "SECRET", "FEDSVC_CLIENT_TLS": "true"})
    assert found.tls is not None
    assert "SECRET" not in repr(found)
