"""HTTP/2 by the h2 library, driven directly: the least that a library in Python costs.

What h2 checks and normalises of headers is turned off, since they are right as they are made. Signatures are
marked as never to be indexed: no other request has the same, and in the table they would push out the rest.
"""

from __future__ import annotations

from functools import partial

import h2.config
import h2.connection
import h2.events
import h2.settings
from hpack import NeverIndexedHeaderTuple

from benchmarks.http_clients.client import ALWAYS, Inbox
from benchmarks.http_clients.multiplexed import MultiplexedClient, MultiplexedConnection

_ALWAYS = [(name.lower(), value) for name, value in ALWAYS.items()]


class H2Connection(MultiplexedConnection):
    def __init__(self) -> None:
        super().__init__()
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        self._statuses: dict[int, int] = {}

    def begin(self, inbox: Inbox, headers: dict[str, str], body: bytes) -> int:
        """Raises RuntimeError if the server takes no more just now: these inboxes always do."""
        stream = int(self._h2.get_next_available_stream_id())
        self._h2.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", headers["Host"]),
                (":path", inbox.target.path),
                ("date", headers["Date"]),
                ("digest", headers["Digest"]),
                ("content-type", headers["Content-Type"]),
                NeverIndexedHeaderTuple("signature", headers["Signature"]),
                *_ALWAYS,
                ("content-length", str(len(body))),
            ],
        )
        if self._h2.local_flow_control_window(stream) < len(body):
            raise RuntimeError("the server's window is full")
        self._h2.send_data(stream, body, end_stream=True)
        return stream

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            match event:
                case h2.events.ResponseReceived():
                    self._statuses[event.stream_id] = int(dict(event.headers)[b":status"])
                case h2.events.StreamEnded():
                    self._answered(event.stream_id, self._statuses.pop(event.stream_id))
                case h2.events.RemoteSettingsChanged():
                    if not self.ready.done():
                        self.ready.set_result(None)
                case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    self._failed(repr(event))
                case _:
                    pass  # windows, acknowledgements
        self._flush_soon()

    def _greet(self) -> None:
        self._h2.local_settings[h2.settings.SettingCodes.ENABLE_PUSH] = 0
        self._h2.initiate_connection()

    def _output(self) -> bytes:
        return bytes(self._h2.data_to_send())


make = partial(MultiplexedClient, H2Connection)
