from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedsvc.domain.delivery import MAX_HISTORY, Attempt, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.errors import QueueCorrupt
from fedsvc.queue.record import FLAG_EXPIRES, FLAG_SHARED_INBOX, Finished, Record, unpack

ID = DeliveryId(3, 1_763_900_000_123_456)
attempts = st.builds(
    Attempt,
    st.integers(ID.accepted_ms, ID.accepted_ms + 0xFFFFFFFF),
    st.integers(0, 0xFFFF),
    st.integers(0, 999),
    st.sampled_from(Reason),
)
records = st.builds(
    Record,
    st.sampled_from([s for s in DeliveryState if not s.is_terminal or s is DeliveryState.DEAD]),
    st.integers(0, 255),
    st.sampled_from(Priority),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 2**53),
    st.integers(3, 2**53),  # at 2 it is in SQL, with its attempts
    st.text("abc/:.?=%-", max_size=2048),
    st.lists(attempts, max_size=MAX_HISTORY).map(tuple),
)


def blank(**changes: object) -> Record:
    values: dict[str, object] = {
        "state": DeliveryState.READY, "flags": 0, "priority": Priority.BULK, "type_code": 0, "attempts": 0,
        "tries": 0, "deadline_s": 100, "message": 1, "place": 1, "inbox": "https://a.example/inbox",
    }  # fmt: skip
    return Record(**(values | changes))  # type: ignore[arg-type]


@given(records)
@example(blank(inbox="/:/=//"))
def test_a_record_comes_back_as_it_was_packed(record: Record) -> None:
    assert unpack(record.pack(ID.accepted_ms), ID) == record


def test_what_is_left_of_a_finished_delivery_is_its_state_and_outcome() -> None:
    packed = bytes([DeliveryState.DELIVERED]) + (77).to_bytes(8, "big")
    assert unpack(packed, ID) == Finished(DeliveryState.DELIVERED, 77)


@given(st.binary(max_size=80))
def test_nothing_but_a_record_or_a_refusal_comes_of_nonsense(packed: bytes) -> None:
    try:
        unpack(packed, ID)
    except QueueCorrupt:
        return


def test_the_deadline_is_an_expiry_only_if_the_caller_set_it() -> None:
    assert blank().expire_ms == 0
    assert blank(flags=FLAG_EXPIRES).expire_ms == 100_000
    assert blank(flags=FLAG_SHARED_INBOX).shared_inbox


def test_only_the_last_attempts_are_remembered() -> None:
    record = blank()
    for number in range(MAX_HISTORY + 5):
        record = record.tried(Attempt(number, 1, 503, Reason.UNAVAILABLE), DeliveryState.RETRY)
    assert record.attempts == MAX_HISTORY + 5
    assert len(record.history) == MAX_HISTORY
    assert record.history[-1].time_ms == MAX_HISTORY + 4
    assert record.history[-1].reason is Reason.UNAVAILABLE


@pytest.mark.parametrize("text", ["", "1", "1-", "-1", "1-0", "01-5", "1-5x", "99999-5", "1-" + "9" * 17])
def test_what_is_no_delivery_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a delivery id"):
        DeliveryId.parse(text)


def test_a_delivery_id_is_read_as_it_is_written() -> None:
    assert DeliveryId.parse(str(ID)) == ID
    assert ID.accepted_ms == 1_763_900_000_123


def test_an_attempt_beyond_what_is_kept_of_it_is_cut_down() -> None:
    """Its latency is kept up to a minute and a bit, its start from the acceptance on."""
    told = blank(history=(Attempt(ID.accepted_ms - 5, 300_000, 502, Reason.SERVER_ERROR),))
    kept = unpack(told.pack(ID.accepted_ms), ID)
    assert isinstance(kept, Record)
    assert kept.history == (Attempt(ID.accepted_ms, 0xFFFF, 502, Reason.SERVER_ERROR),)


@pytest.mark.parametrize("missing", [1, 5, 22])
def test_a_record_whose_inbox_is_cut_short_is_refused(missing: int) -> None:
    with pytest.raises(QueueCorrupt, match="cut short"):
        unpack(blank().pack(ID.accepted_ms)[:-missing], ID)


def test_a_record_says_where_in_its_inbox_the_host_stands() -> None:
    """As `host_at` of lua/prelude.lua reads it: what waits for a retry is at that host."""
    packed = blank(inbox="https://[2001:db8::1]:8443/inbox").pack(ID.accepted_ms)
    at, length = packed[28:30]
    assert packed[30 + at : 30 + at + length] == b"2001:db8::1"
