"""The client for code without an event loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import grpc

from fedsvc_client import _channel, _wire
from fedsvc_client._arguments import build, inbox_list, named, seconds, several, whole_text
from fedsvc_client._channel import TLS, Attempts, Remakings
from fedsvc_client._connections import Connection, Connections
from fedsvc_client._exceptions import ClientClosed, ConfigurationError
from fedsvc_client._operators import Operators
from fedsvc_client._proto import delivery_service_pb2 as delivery_pb2
from fedsvc_client._proto import key_service_pb2 as key_pb2
from fedsvc_client._proto import operations_service_pb2 as operations_pb2
from fedsvc_client._types import (
    BatchItem,
    Cancelled,
    Delivery,
    DeliveryPage,
    DeliveryState,
    EventType,
    FanOut,
    KeyPage,
    OutcomeEvent,
    Priority,
    QueuedActivity,
    RegisteredKey,
)
from fedsvc_client._wire import Activity


class FedsvcClient(Operators):
    """Calls a fedsvc server. Safe to share between threads, and to use in a process that forked from one
    that has used it (gunicorn, Celery): each process gets a connection of its own.

        with FedsvcClient("127.0.0.1:50051") as client:
            client.queue_activity(activity, "https://lemmy.example/inbox", private_key=pem, key_id=key_id)

    Every call takes at most `timeout` seconds. A call that finds the server unavailable is repeated under the
    same request id until then. All raise `FedsvcError`.
    """

    def __init__(
        self, target: str, token: str | None = None, *, timeout: float = 10.0, tls: TLS | bool = False
    ) -> None:
        """`target`: HOST:PORT, several of these with commas between if they are IP addresses, or any gRPC
        target such as `dns:///fedsvc:50051`; calls go to all servers in turn, but for those that are not
        well. `token`: as `fedsvc tokens new` printed it. `tls`: True trusts the server by the system's
        authorities; see `TLS` for others. Raises ConfigurationError."""
        #: how often calls and streams were repeated since they found no server
        self.retries = 0
        self._target = _channel.channel_target(target)
        self._token = _channel.channel_token(token)
        #: seconds that a call takes at most
        self.timeout = seconds("timeout", timeout, ConfigurationError)
        self._connections = Connections(self._target, _channel.channel_tls(tls), self.timeout)
        self._closed = False

    def __enter__(self) -> FedsvcClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FedsvcClient({self._target!r})"

    def close(self) -> None:
        """Drop the connection. The client cannot be used afterwards."""
        self._closed = True
        self._connections.close()

    def queue_activity(
        self,
        activity: Activity,
        destination: str,
        *,
        private_key: str | bytes | None = None,
        key_id: str,
        priority: Priority | str | None = None,
        not_before: datetime | None = None,
        expire_time: datetime | None = None,
        ordering_key: str = "",
        supersede_key: str = "",
        content_type: str = "",
        allow_duplicate: bool = False,
        shared_inbox: bool = False,
        integrity_proof: bool = False,
        proof_key: str | bytes | None = None,
        proof_key_id: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> QueuedActivity:
        """Deliver `activity` to the inbox `destination`. Returning means that the queue has it.

        A dict is sent as compact JSON; bytes and text are signed and sent as they are.
        """
        request = build(
            delivery_pb2.QueueActivityRequest,
            activity=_wire.activity_bytes(activity),
            inbox=whole_text("destination", destination),
            signing_key=_wire.signing_key(private_key, key_id),
            options=_wire.options(
                priority,
                not_before,
                expire_time,
                ordering_key,
                supersede_key,
                content_type,
                allow_duplicate,
                shared_inbox,
                integrity_proof,
                proof_key,
                proof_key_id,
            ),
            request_id=named(request_id),
        )
        return _wire.queued(self._call("delivery", "QueueActivity", request, timeout))

    def queue_activities(
        self,
        items: Sequence[Mapping[str, Any]],
        *,
        private_key: str | bytes | None = None,
        key_id: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> list[BatchItem]:
        """Deliver several activities (at most MAX_BATCH_SIZE, 10). Each of `items` has `activity` and
        `destination`, and may have anything else that `queue_activity` takes. One that is refused takes
        nothing else down."""
        request = build(
            delivery_pb2.QueueActivitiesRequest,
            requests=_wire.batch_items(items, private_key, key_id),
            request_id=named(request_id),
        )
        return _wire.batch(self._call("delivery", "QueueActivities", request, timeout))

    def fan_out(
        self,
        activity: Activity,
        inboxes: Iterable[str],
        *,
        private_key: str | bytes | None = None,
        key_id: str,
        priority: Priority | str | None = None,
        not_before: datetime | None = None,
        expire_time: datetime | None = None,
        ordering_key: str = "",
        supersede_key: str = "",
        content_type: str = "",
        allow_duplicate: bool = False,
        shared_inbox: bool = False,
        integrity_proof: bool = False,
        proof_key: str | bytes | None = None,
        proof_key_id: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> FanOut:
        """Deliver one activity to many inboxes (at most 50,000). An inbox that is refused takes nothing else
        down."""
        request = build(
            delivery_pb2.FanOutActivityRequest,
            activity=_wire.activity_bytes(activity),
            inboxes=inbox_list(inboxes),
            signing_key=_wire.signing_key(private_key, key_id),
            options=_wire.options(
                priority,
                not_before,
                expire_time,
                ordering_key,
                supersede_key,
                content_type,
                allow_duplicate,
                shared_inbox,
                integrity_proof,
                proof_key,
                proof_key_id,
            ),
            request_id=named(request_id),
        )
        return _wire.fan_out(self._call("delivery", "FanOutActivity", request, timeout))

    def get_delivery(self, delivery_id: str, *, timeout: float | None = None) -> Delivery:
        """One delivery as it is now. Raises NotFound."""
        request = build(delivery_pb2.GetDeliveryRequest, delivery_id=delivery_id)
        return _wire.delivery(self._call("delivery", "GetDelivery", request, timeout).delivery)

    def list_deliveries(
        self,
        activity_id: str,
        *,
        states: Iterable[DeliveryState | str] = (),
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
    ) -> DeliveryPage:
        """One page of an activity's deliveries. `page_size=-1` gives the summary only. Raises NotFound."""
        request = build(
            delivery_pb2.ListDeliveriesRequest,
            activity_id=activity_id,
            states=_wire.states(states),
            page_size=page_size,
            page_token=page_token,
        )
        return _wire.delivery_page(self._call("delivery", "ListDeliveries", request, timeout))

    def iterate_deliveries(
        self, activity_id: str, *, states: Iterable[DeliveryState | str] = ()
    ) -> Iterator[Delivery]:
        """All deliveries of an activity, fetched page by page. Raises NotFound."""
        wanted, token = several("states", states), ""
        while True:
            page = self.list_deliveries(activity_id, states=wanted, page_size=1000, page_token=token)
            yield from page.deliveries
            token = page.next_page_token
            if not token:
                return

    def cancel_deliveries(
        self,
        delivery_ids: Iterable[str] = (),
        *,
        activity_id: str = "",
        host: str = "",
        ordering_key: str = "",
        supersede_key: str = "",
        timeout: float | None = None,
    ) -> Cancelled:
        """Take back what was not sent yet: these deliveries (1000 at most), or all of an activity, to a host
        or with a key. Exactly one selector. Repeating it is safe."""
        request = _wire.cancel_request(delivery_ids, activity_id, host, ordering_key, supersede_key)
        return _wire.cancelled(self._call("delivery", "CancelDeliveries", request, timeout))

    def notify_host_seen(self, host: str, *, timeout: float | None = None) -> bool:
        """Say that something was just received from a host: if it counts as down, it is tried now. Returns
        whether it is going to be. Cheap enough to call for every request that comes in from a host that the
        application knows to be down."""
        request = build(operations_pb2.NotifyHostSeenRequest, host=host)
        return bool((self._call("operations", "NotifyHostSeen", request, timeout)).probing)

    def watch_outcomes(
        self,
        cursor: str = "",
        *,
        event_types: Iterable[EventType | str] = (),
        states: Iterable[DeliveryState | str] = (),
        activity_types: Iterable[str] = (),
        hosts: Iterable[str] = (),
        heartbeats: bool = False,
    ) -> Iterator[OutcomeEvent]:
        """Outcomes and events as they happen, each at least once; without an end.

        Keep the `cursor` of what you have handled, and begin with it the next time; an empty one begins now.
        A connection that breaks is made again from where it was; the call ends with Unavailable when that
        takes longer than the client's timeout. `heartbeats`: give signs of life too, at least every 15
        seconds, whose cursors save reading again what was of no interest.
        """
        request = _wire.watch_request(cursor, event_types, states, activity_types, hosts)
        for message in self._stream("delivery", "WatchOutcomes", request):
            request.cursor = message.cursor
            event = _wire.event(message)
            if heartbeats or event.type is not EventType.HEARTBEAT:
                yield event

    def put_key(
        self,
        key_id: str,
        private_key: str | bytes,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> RegisteredKey:
        """Register a signing key, or replace the one of this id: later calls need only name it."""
        request = build(
            key_pb2.PutKeyRequest,
            key_id=key_id,
            private_key_pem=_wire.pem(private_key),
            request_id=named(request_id),
        )
        return _wire.registered_key((self._call("keys", "PutKey", request, timeout)).key)

    def rotate_key(
        self,
        key_id: str,
        private_key: str | bytes,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> RegisteredKey:
        """Replace a registered key: what waits is signed with the new one. Raises NotFound."""
        request = build(
            key_pb2.RotateKeyRequest,
            key_id=key_id,
            private_key_pem=_wire.pem(private_key),
            request_id=named(request_id),
        )
        return _wire.registered_key((self._call("keys", "RotateKey", request, timeout)).key)

    def get_key(self, key_id: str, *, timeout: float | None = None) -> RegisteredKey:
        """What may be told of a registered key. Raises NotFound."""
        request = build(key_pb2.GetKeyRequest, key_id=key_id)
        return _wire.registered_key((self._call("keys", "GetKey", request, timeout)).key)

    def list_keys(
        self, *, origin: str = "", page_size: int = 0, page_token: str = "", timeout: float | None = None
    ) -> KeyPage:
        """One page of registered keys, by origin and id."""
        request = build(key_pb2.ListKeysRequest, origin=origin, page_size=page_size, page_token=page_token)
        return _wire.key_page(self._call("keys", "ListKeys", request, timeout))

    def delete_key(
        self,
        key_id: str,
        *,
        when_unused: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Forget a registered key. Returns True if that comes later, when nothing needs it any more. Raises
        NotFound, and InvalidRequest (reason KEY_IN_USE) if deliveries need it, or a schedule signs with it,
        and not `when_unused`."""
        request = build(
            key_pb2.DeleteKeyRequest, key_id=key_id, when_unused=when_unused, request_id=named(request_id)
        )
        return bool((self._call("keys", "DeleteKey", request, timeout)).deferred)

    def _connection(self) -> Connection:
        self._refuse_closed()
        held = self._connections.get()
        if self._closed:  # by another thread, meanwhile: the call will say so
            held.channel.close()
        return held

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ClientClosed("the client is closed")

    def _stream(self, service: str, method: str, request: Any) -> Iterator[Any]:
        """What a stream gives. One that breaks is made again with `request` as it is then."""
        remakings, call = Remakings(self.timeout), None
        while True:
            try:
                connection = self._connection()  # which stays open as long as it is used
                call = getattr(getattr(connection, service), method)(
                    request, metadata=_channel.metadata(self._token)
                )
                for message in call:
                    remakings.works()
                    yield message
                pause = remakings.pause_after_end()
            except (grpc.RpcError, ValueError) as error:
                pause = remakings.pause_after(*self._ended(error))
            finally:
                if call is not None:
                    call.cancel()
            self.retries += 1
            time.sleep(pause)

    def _call(self, service: str, method: str, request: Any, timeout: float | None) -> Any:
        attempts = Attempts(self.timeout if timeout is None else timeout)
        while True:
            try:
                connection = self._connection()  # which stays open as long as it is used
                return getattr(getattr(connection, service), method)(
                    request, timeout=max(0.001, attempts.left), metadata=_channel.metadata(self._token)
                )
            except (grpc.RpcError, ValueError) as error:
                failed = self._ended(error)
            pause = attempts.pause_after(*failed, getattr(request, "request_id", ""))
            self.retries += 1
            time.sleep(pause)

    def _ended(self, error: Any) -> tuple[grpc.StatusCode, str | None, Iterable[Any]]:
        """How a call ended. Raises ClientClosed if that is why, which gRPC may call a ValueError."""
        answered = isinstance(error, grpc.RpcError)
        if self._closed and not (answered and error.code() is not grpc.StatusCode.CANCELLED):
            raise ClientClosed("the client is closed") from None
        if not answered:
            raise error
        details = error.details()
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            self._connections.renew()
            details = _channel.explained(details, self._connections.tls)
        return error.code(), details, error.trailing_metadata() or ()
