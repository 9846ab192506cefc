"""What all deliveries of one activity share, packed and told apart."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain.message import CONTENT_TYPE, Message

BODY = b'{"id":"https://me.example/1"}'
LIKE = Message(
    BODY, "https://me.example/1", "Like", "https://me.example/u/ada", "https://me.example/u/ada#main-key",
    "0123456789abcdef", "me.example", digest=Message.digest_of(BODY),
)  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.builds(Message, st.binary(max_size=50), *[texts] * (len(fields(Message)) - 1)))
def test_a_message_comes_back_as_it_was_packed(message: Message) -> None:
    assert Message.unpack(message.body, message.pack()) == message


def test_the_body_is_kept_apart() -> None:
    assert BODY not in LIKE.pack()


def test_the_digest_is_that_of_the_header() -> None:
    """RFC 3230 with SHA-256: base64 of the hash of the body's bytes."""
    assert Message.digest_of(b"") == "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


def test_a_later_release_may_add_fields_at_the_end() -> None:
    longer = orjson.dumps([*orjson.loads(LIKE.pack()), "new"])
    assert Message.unpack(BODY, longer) == LIKE


@pytest.mark.parametrize(
    "change",
    ["activity_id", "key_id", "key_name", "content_type", "digest", "ordering_key", "supersede_key"],
)
def test_messages_that_differ_in_what_is_sent_are_stored_apart(change: str) -> None:
    changed: Any = {change: "another"}
    assert replace(LIKE, **changed).identity() != LIKE.identity()


def test_one_message_of_two_calls_is_stored_once() -> None:
    again = replace(LIKE, request_id="r2", trace="00-1-2-01")
    assert again.identity() == LIKE.identity()
    assert len(LIKE.identity()) == 16
    assert LIKE.content_type == CONTENT_TYPE


def test_fields_that_run_into_each_other_are_told_apart() -> None:
    one = replace(LIKE, activity_id="ab", key_id="c")
    other = replace(LIKE, activity_id="a", key_id="bc")
    assert one.identity() != other.identity()


@pytest.mark.parametrize(
    "packed",
    [b"", b"{}", b"null", b"[1]", b'["a"]', b"\xff", orjson.dumps([""] * 11 + [5]), LIKE.pack()[:-1]],
)
def test_what_was_not_packed_by_us_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Message.unpack(b"", packed)
