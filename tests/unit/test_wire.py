"""Messages of Protocol Buffers before they are read."""

from __future__ import annotations

import time

import pytest

from fedsvc.server.wire import has_more_fields
from fedsvc.v1 import delivery_service_pb2 as pb

INBOXES = pb.FanOutActivityRequest(
    activity=b"{}", inboxes=["https://a.example/" + "x" * n for n in range(300)]
)


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (b"", 0),
        (INBOXES.SerializeToString(), 301),
        (b"\x0a\x00" * 5, 5),
        (b"\x08\x96\x01" + b"\x09" + bytes(8) + b"\x0d" + bytes(4) + b"\x12\x02ab", 4),
        (b"\x0b\x08\x01\x0c", 3),  # a group, what is in it, and its end
        (b"\x8a\x80\x00\x80\x00", 1),  # written at more length than need be
    ],
)
def test_fields_are_counted_without_being_read(message: bytes, fields: int) -> None:
    assert not has_more_fields(message, fields)
    if fields:
        assert has_more_fields(message, fields - 1)


@pytest.mark.parametrize(
    "garbage", [b"\x0a", b"\x08\x80", b"\x80" * 20_000_000, b"\x0a" + b"\xff" * 20_000_000]
)
def test_what_is_no_message_takes_no_time(garbage: bytes) -> None:
    begun = time.process_time()
    assert not has_more_fields(garbage, 2)
    assert time.process_time() - begun < 1
