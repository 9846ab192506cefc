"""The packed outcome, as the streams `outcomes` and `dead` carry it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain.delivery import MAX_HISTORY, Attempt, Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.errors import QueueCorrupt
from fedsvc.queue.outcome import pack, unpack

ID = DeliveryId(3, 1_763_900_000_123_456)
GONE = Delivery(
    ID, DeliveryState.DEAD, "https://me.example/1", "Like", "https://me.example/u/a", "https://a.example/i",
    "a.example", "me.example", "https://me.example/u/a#k", Priority.URGENT, 2, Reason.GONE, 410, "gone ☂",
    expire_ms=5, ordering_key="o", request_id="r", outcome=9_000_000, completed_ms=9000,
    history=(Attempt(1, 2, 410, Reason.GONE),),
)  # fmt: skip

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
times = st.integers(0, 2**63 - 1)
statuses = st.integers(0, 999)
ended = st.builds(
    Delivery,
    id=st.just(ID),
    state=st.sampled_from([state for state in DeliveryState if state.is_terminal]),
    activity_id=texts,
    activity_type=texts,
    actor=texts,
    inbox=texts,
    host=texts,
    origin=texts,
    key_id=texts,
    priority=st.sampled_from(Priority),
    attempts=st.integers(0, 255),
    reason=st.none() | st.sampled_from(Reason),
    status=statuses,
    snippet=texts,
    not_before_ms=times,
    expire_ms=times,
    ordering_key=texts,
    request_id=texts,
    history=st.lists(
        st.builds(Attempt, times, st.integers(0, 0xFFFF), statuses, st.sampled_from(Reason)),
        max_size=MAX_HISTORY,
    ).map(tuple),
)


@given(ended, times)
def test_an_outcome_comes_back_as_it_was_packed(delivery: Delivery, number: int) -> None:
    expected = replace(delivery, outcome=number, completed_ms=number // 1000)
    assert unpack(pack(delivery), ID, delivery.state, number) == expected


def test_state_and_number_are_the_entry_s_and_tell_the_time_it_ended() -> None:
    told = unpack(pack(GONE), ID, DeliveryState.PURGED, 1_763_900_000_999_999)
    assert (told.state, told.outcome) == (DeliveryState.PURGED, 1_763_900_000_999_999)
    assert told.completed_ms == 1_763_900_000_999


def test_the_form_never_changes() -> None:
    """It is stored: what a release wrote, the next one must read."""
    assert pack(GONE).decode() == (
        '["https://me.example/1","Like","https://me.example/u/a","https://a.example/i","a.example",'
        '"me.example","https://me.example/u/a#k",1,2,8,410,"gone ☂",0,5,"o","r",[[1,2,410,8]]]'
    )


PARTS: list[Any] = orjson.loads(pack(GONE))


@pytest.mark.parametrize(
    ("position", "wrong"),
    [
        *((position, None) for position in range(17)),
        *((position, 1) for position in (0, 3, 4, 11, 15)),
        (7, 0),
        (7, 4),
        (7, True),
        (8, -1),
        (8, 2**15),
        (8, 1.0),
        (9, 256),
        (10, -1),
        (10, 2**16),
        (12, 2**63),
        (13, -5),
        (16, [[1, 2, 410]]),
        (16, [[1, 2, 410, 0]]),
        (16, [["x", 2, 410, 8]]),
        (16, [[1, 2, None, 8]]),
        (16, [[1, 5e38, 410, 8]]),
        (16, [[-1, 2, 410, 8]]),
        (16, [[True, 2, 410, 8]]),
        (16, [[2**63, 2, 410, 8]]),
        (16, [5]),
    ],
)
def test_an_outcome_with_a_wrong_part_is_refused(position: int, wrong: Any) -> None:
    changed = [*PARTS[:position], wrong, *PARTS[position + 1 :]]
    with pytest.raises(QueueCorrupt, match=str(ID)):
        unpack(orjson.dumps(changed), ID, DeliveryState.DEAD, 1)


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[]", b"[1,2,3]", b"null", b"5", b'"text"', b"\xff", pack(GONE)[:-1]]
)
def test_what_is_no_outcome_is_refused(payload: bytes) -> None:
    with pytest.raises(QueueCorrupt):
        unpack(payload, ID, DeliveryState.DEAD, 1)


@given(st.binary(max_size=80))
def test_nothing_but_a_refusal_ever_comes_of_nonsense(payload: bytes) -> None:
    with pytest.raises(QueueCorrupt):
        unpack(payload, ID, DeliveryState.DEAD, 1)
