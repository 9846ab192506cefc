"""A connection that reads one answer to one request, within limits, and nothing that was not asked for.

aiohttp limits the lines of a head and their number, but takes interim answers without end, chunk extensions
and trailers beside the body, and what comes on an idle connection as the answer to the next request.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError

#: of all heads together, interim answers (1xx) included
HEAD_BYTES: Final = 32_768
#: of what follows the head, as it is on the wire
BODY_BYTES: Final = 65_536

_HEAD_END: Final = b"\r\n\r\n"
_SWITCHING: Final = 101


class AnswerConnection(ResponseHandler):
    """What aiohttp's connector makes for each connection. A head beyond HEAD_BYTES is a protocol error; a
    body ends at BODY_BYTES or where it is no longer valid, and the connection with it."""

    _answered = False  # the head of the final answer is there
    _head_left = HEAD_BYTES
    _body_left = BODY_BYTES

    def set_response_params(self, **params: Any) -> None:
        """Begins to wait for the answer to one request."""
        self._answered = False
        self._head_left = HEAD_BYTES
        self._body_left = BODY_BYTES
        early, self._tail = self._tail, b""
        super().set_response_params(**params)
        if early:
            self.set_exception(HttpProcessingError(message="an answer before the request"))

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Takes a head that was parsed: the first that is final, no other."""
        status = data[0].code
        if self._answered:
            self.force_close()  # a second answer to one request
        elif status >= 200 or status == _SWITCHING:
            self._answered = True
            super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or not data:
            super().data_received(data)  # before the request: kept until then
            return
        if self.exception() is not None:
            return  # given up
        at = 0
        while at < len(data):
            if self._answered:
                if not self._body(data[at:]):
                    self._stop()
                return
            # the head by itself: a body that is no good must not take it away
            end = data.find(_HEAD_END, at, at + self._head_left)
            piece = data[at : end + len(_HEAD_END) if end >= 0 else at + self._head_left]
            at += len(piece)
            self._head_left -= len(piece)
            super().data_received(piece)
            if self.exception() is not None:
                return
            if self._head_left <= 0 and not self._answered:
                self.set_exception(HttpProcessingError(message=f"head of over {HEAD_BYTES} bytes"))
                self._stop()
                return

    def close(self) -> None:
        """Drops what a remote that does not read has left in our buffers: nobody waits for it any more."""
        if self.transport is not None and self.transport.get_write_buffer_size():
            self.abort()
        else:
            super().close()

    def _body(self, data: bytes) -> bool:
        """Reads on; False if the connection can have no further use."""
        payload = self._payload
        if payload is None or payload.is_eof():
            return False
        piece = data[: self._body_left]
        self._body_left -= len(piece)
        super().data_received(piece)
        if payload.is_eof():
            return len(piece) == len(data)
        if self._body_left and self.exception() is None:
            return True
        payload.feed_eof()  # what there is of it is read
        return False

    def _stop(self) -> None:
        self.force_close()
        if self.transport is not None:
            self.transport.close()
