"""What the client makes of a call that ended badly."""

from __future__ import annotations

import grpc
import pytest
from fedsvc_client import FieldViolation, InvalidRequest, Unavailable
from fedsvc_client._exceptions import from_call
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DETAILS = "grpc-status-details-bin"


def packed(*details: Message) -> bytes:
    status = status_pb2.Status()
    for detail in details:
        status.details.add().Pack(detail)
    return bytes(status.SerializeToString())


def test_details_of_the_server_are_told() -> None:
    told = from_call(
        grpc.StatusCode.INVALID_ARGUMENT,
        "inbox: is not a URL",
        [
            ("grpc-message", "something else"),
            (
                DETAILS,
                packed(
                    error_details_pb2.ErrorInfo(reason="BAD"),
                    error_details_pb2.BadRequest(
                        field_violations=[
                            error_details_pb2.BadRequest.FieldViolation(
                                field="inbox", description="is not a URL"
                            )
                        ]
                    ),
                ),
            ),
        ],
        "r",
    )
    assert isinstance(told, InvalidRequest)
    assert (told.reason, told.violations, told.request_id) == (
        "BAD", (FieldViolation("inbox", "is not a URL"),), "r",
    )  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        b"\xff\xff\xff",
        b"<html>502</html>",
        status_pb2.Status(
            details=[Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")]
        ).SerializeToString(),
    ],
    ids=["no status", "a page", "no detail"],
)
def test_details_that_are_none_hide_no_error(value: bytes) -> None:
    told = from_call(grpc.StatusCode.UNAVAILABLE, "upstream is away", [(DETAILS, value)], "r")
    assert isinstance(told, Unavailable)
    assert (str(told), told.reason, told.request_id) == ("upstream is away", "", "r")
