from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain.activity import Activity, activity_key, parse_activity
from fedsvc.domain.errors import InvalidActivity

OWN = sorted((Path(__file__).parents[1] / "data" / "activities").glob("*.json"))
SERVERS = sorted((Path(__file__).parents[3] / "shared" / "activities").glob("*.json"))
MAX = 1_048_576
GOOD: dict[str, Any] = {
    "id": "https://me.example/1",
    "type": "Like",
    "actor": "https://me.example/u/ada",
    "object": "https://other.example/post/1",
}


def parse(**changes: Any) -> Activity:
    document = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    return parse_activity(json.dumps(document).encode(), max_bytes=MAX)


def test_what_matters_of_an_activity_is_read() -> None:
    assert parse() == Activity(GOOD["id"], "Like", GOOD["actor"], GOOD["object"], "")
    inner = {"id": "https://other.example/n/1", "type": "Note"}
    assert parse(object=inner).object_type == "Note"
    assert parse(object=inner).object_id == inner["id"]
    assert parse(object=...).object_id == ""
    assert parse(object=["https://other.example/1"]).object_id == "https://other.example/1"


@pytest.mark.parametrize("object_", [None, 5, [], [[]], {"id": 5, "type": []}, "x" * 2049, "a\0b"], ids=repr)
def test_an_object_that_says_nothing_usable_of_itself_is_no_obstacle(object_: Any) -> None:
    activity = parse(object=object_)
    assert (activity.object_id, activity.object_type) == ("", "")


def test_of_duplicate_members_the_last_counts() -> None:
    body = b'{"id":"https://me.example/1","id":"https://me.example/2","type":"Like","actor":"https://me.example/"}'
    assert parse_activity(body, max_bytes=MAX).id == "https://me.example/2"


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    body = json.dumps(GOOD).encode()
    assert parse_activity(body, max_bytes=len(body)).type == "Like"
    with pytest.raises(InvalidActivity, match=f"has {len(body)} bytes; {len(body) - 1} are allowed"):
        parse_activity(body, max_bytes=len(body) - 1)


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"type": ["Announce", "as:Thing"]}, ("Announce", GOOD["actor"])),
        (
            {"actor": {"type": "Person", "id": "https://me.example/u/eve"}},
            ("Like", "https://me.example/u/eve"),
        ),
        ({"actor": ["https://me.example/u/eve"]}, ("Like", "https://me.example/u/eve")),
        ({"actor": [{"id": "https://me.example/u/eve"}, 5]}, ("Like", "https://me.example/u/eve")),
        ({"id": "https://[2001:db8::1]:8443/1"}, ("Like", GOOD["actor"])),
        ({"id": "https://bücher.example/ä"}, ("Like", GOOD["actor"])),
        ({"litepub:thing": {"a": [1, None]}, "@context": []}, ("Like", GOOD["actor"])),
        ({"id": "http://me.example:8080/a?b=c#d"}, ("Like", GOOD["actor"])),
    ],
)
def test_what_servers_do_send_is_taken(changes: dict[str, Any], read: tuple[str, str]) -> None:
    activity = parse(**changes)
    assert (activity.type, activity.actor) == read


@pytest.mark.parametrize("path", [*OWN, *SERVERS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_activity_as_servers_send_it_is_taken(path: Path) -> None:
    assert parse_activity(path.read_bytes(), max_bytes=MAX).id


def test_there_are_examples() -> None:
    assert len(OWN) >= 8


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "required"),
        (b"{", "is not JSON"),
        (b"nonsense", "is not JSON"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": NaN}', "is not JSON"),
        (b'{"a": Infinity}', "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "depth"),
        (b"[" * 10_000, "is not JSON"),
        (b'{"a":"' + b"x" * MAX + b'"}', f"has {MAX + 8} bytes; {MAX} are allowed"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_activity_is_refused_in_words(body: bytes, problem: str) -> None:
    with pytest.raises(InvalidActivity) as refused:
        parse_activity(body, max_bytes=MAX)
    assert refused.value.field == "activity"
    assert problem in refused.value.problem


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("id", ..., "is missing"),
        ("id", 5, "is not a string"),
        ("id", "", "absolute"),
        ("id", "urn:uuid:1", "absolute"),
        ("id", "https://", "absolute"),
        ("id", "https://:80/a", "absolute"),
        ("id", "https://[/a", "absolute"),
        ("id", "https://me.example\\@other.example/", "absolute"),
        ("id", "https://me.example/\u2028", "absolute"),
        ("id", ["https://me.example/1"], "is not a string"),
        ("id", "https://me.example/a b", "absolute"),
        ("id", "https://me.example/" + "x" * 2048, "longer"),
        ("type", ..., "is missing"),
        ("type", "", "is missing"),
        ("type", 5, "is not a string"),
        ("type", {}, "is not a string"),
        ("type", [], "is missing"),
        ("type", [5, "Like"], "is not a string"),
        ("type", " ", "printable"),
        ("type", "x" * 65, "at most 64"),
        ("type", "a\nb", "printable"),
        ("actor", ..., "is missing"),
        ("actor", {}, "is missing"),
        ("actor", [], "is missing"),
        ("actor", [["https://me.example/u/ada"]], "is not a string"),
        ("actor", {"id": 5}, "is not a string"),
        ("actor", 5, "is not a string"),
        ("actor", "ada", "absolute"),
    ],
)
def test_a_missing_or_wrong_member_is_named(field: str, value: Any, problem: str) -> None:
    with pytest.raises(InvalidActivity) as refused:
        parse(**{field: value})
    assert refused.value.field == f"activity.{field}"
    assert problem in refused.value.problem


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.binary(max_size=200) | st.dictionaries(st.sampled_from(["id", "type", "actor", "object"]), json_values)
)
def test_nothing_but_a_refusal_ever_comes_of_nonsense(content: bytes | dict[str, Any]) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    try:
        parse_activity(body, max_bytes=MAX)
    except InvalidActivity:
        return


def test_the_key_of_an_activity_id_never_changes() -> None:
    assert activity_key("https://me.example/1").hex() == "517f76f8a5213bbd6b3152f0cef606a4"
