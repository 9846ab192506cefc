"""Calls as applications make them, and what is told of those that are refused."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from fedsvc.v1 import delivery_service_pb2 as pb

KEY_ID = "https://me.example/u/ada#main-key"
ACTIVITY = {
    "id": "https://me.example/1",
    "type": "Like",
    "actor": "https://me.example/u/ada",
    "object": "https://other.example/1",
}


def queue_request(
    *,
    pem: str,
    activity: bytes | dict[str, Any] = ACTIVITY,
    inbox: str = "https://a.example/inbox",
    key_id: str = KEY_ID,
    request_id: str = "",
    **options: Any,
) -> pb.QueueActivityRequest:
    body = activity if isinstance(activity, bytes) else json.dumps(activity).encode()
    return pb.QueueActivityRequest(
        activity=body,
        inbox=inbox,
        signing_key=pb.SigningKey(key_id=key_id, private_key_pem=pem),
        options=pb.DeliveryOptions(**options),
        request_id=request_id,
    )


def details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, list[str]]:
    """ErrorInfo, and the fields that BadRequest names."""
    info, fields = error_details_pb2.ErrorInfo(), []
    trailers = dict(tuple(pair) for pair in error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.message == error.details()
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        detail.Unpack(info)
        if detail.Unpack(bad):
            fields += [violation.field for violation in bad.field_violations]
    return info, fields


async def refused(call: Any, field: str, reason: str) -> str:
    """The call is refused for this field; returns the words."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT, error.value.details()
    info, fields = details(error.value)
    assert (fields, info.reason, info.domain) == ([field], reason, "fedsvc")
    return str(error.value.details())


def fan_out(
    request: pb.QueueActivityRequest, inboxes: list[str], request_id: str = ""
) -> pb.FanOutActivityRequest:
    return pb.FanOutActivityRequest(
        activity=request.activity,
        inboxes=inboxes,
        signing_key=request.signing_key,
        options=request.options,
        request_id=request_id,
    )
