"""A connection to an inbox's host: one request at a time, one answer to each, read within limits.

Head and body have a limit each, interim answers (1xx) and chunk framing count as what they are on the wire,
and only what the classification needs is kept. What comes without having been asked for, before a request,
behind an answer or on an idle connection, ends the connection, so that no answer is ever taken for that of
another request. The bytes are parsed by llhttp (httptools).
"""

from __future__ import annotations

import asyncio
import re
import socket
import zlib
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from fedsvc.domain.classify import Answer
from fedsvc.domain.delivery import SNIPPET_BYTES

#: of all heads together, interim answers (1xx) included
HEAD_BYTES: Final = 32_768
#: of what follows the head, as it is on the wire
BODY_BYTES: Final = 65_536
#: header lines of all heads together: each costs more than its bytes
MAX_HEADERS: Final = 128

#: what the classification looks at, and the first value of which counts
_SINGLE: Final = frozenset({b"content-type", b"content-encoding", b"retry-after", b"location", b"date"})
_ACCEPT_SIGNATURE: Final = b"accept-signature"
_SWITCHING: Final = 101
#: as a number: flags that are put together anew cost a microsecond
_LOOK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_VERSIONS: Final = ("1.1", "1.0")
#: in what llhttp says of two lengths, one that is no number, one beside chunks
_LENGTHS: Final = re.compile("Content-Length|Transfer-Encoding")


class BrokenAnswer(Exception):
    """What came is no answer in HTTP/1, or beyond the limits."""


class ConnectionLost(OSError):
    """It ended before an answer was there."""


class InboxConnection(asyncio.Protocol):
    """Made by a connector of its event loop; belongs to whoever was given it. Never used again once it is not
    `usable` after an answer."""

    def __init__(self, connected: socket.socket | None = None) -> None:
        """`connected`: what the connection is made of, to be looked into by `quiet`."""
        self._loop = asyncio.get_running_loop()
        self._socket = connected
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = None
        #: done when the head of the final answer is there
        self._head: asyncio.Future[None] | None = None
        #: done when nothing more of the answer comes
        self._end: asyncio.Future[None] | None = None
        self._clean = True
        #: when it was last given back (seconds, the loop's clock); for whoever keeps it
        self.idle_since = 0.0
        #: whether anything came since the request was sent
        self.heard = False
        self._status = 0
        self._whole = False
        self._room = 0
        self._headers_left = 0
        self._headers: dict[bytes, str] = {}
        self._accept_signature = ""
        self._body = b""

    @property
    def usable(self) -> bool:
        """Whether another request may be sent on it."""
        return self._clean and self._parser is None and self._transport is not None

    @property
    def quiet(self) -> bool:
        """Whether nothing has come, nor its end, that the event loop had no turn to read yet: it would be
        taken for the answer to the next request."""
        if self._socket is None:
            return True
        try:
            self._socket.recv(1, _LOOK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @property
    def whole(self) -> bool:
        """Whether nothing more of the answer will come."""
        return self._whole

    @property
    def answer(self) -> Answer | None:
        """What is known of the answer; None before its head is there."""
        if not self._status:
            return None
        if not self._body and not self._accept_signature and 200 <= self._status <= 299:
            return _plain(self._status)
        told = self._headers
        return Answer(
            self._status,
            content_type=told.get(b"content-type", ""),
            retry_after=told.get(b"retry-after", ""),
            location=told.get(b"location", ""),
            date=told.get(b"date", ""),
            accept_signature=self._accept_signature,
            body_head=_unpacked(self._body, told.get(b"content-encoding", "")),
        )

    @property
    def ssl_object(self) -> Any:
        """Of the TLS connection; None without TLS, or once it has ended."""
        return self._transport.get_extra_info("ssl_object") if self._transport is not None else None

    def send(self, request: bytes) -> asyncio.Future[None]:
        """Done when the head of the answer is there. Raises BrokenAnswer or ConnectionLost instead."""
        self._head = self._loop.create_future()
        self.heard = False
        self._status = 0
        self._whole = False
        self._room = HEAD_BYTES
        self._headers_left = MAX_HEADERS
        self._headers = {}
        self._accept_signature = ""
        self._body = b""
        if self._transport is None or not self._clean:
            self._head.set_exception(
                BrokenAnswer("an answer before the request")
                if self._transport is not None
                else ConnectionLost("closed before the request")
            )
            return self._head
        self._parser = HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._transport.write(request)
        return self._head

    def rest(self) -> asyncio.Future[None]:
        """Done when the answer has ended, or is as much of it as is read."""
        self._end = self._loop.create_future()
        if self._whole:
            self._end.set_result(None)
        return self._end

    def close(self) -> None:
        """End it: in order if all is said, else at once, with what a remote that does not read has left in
        our buffers."""
        self._clean = False
        if self._transport is None:
            return
        if self._parser is not None or self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    # -- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self._clean = False  # nobody has asked for it
            if self._transport is not None:
                self._transport.close()
            return
        self.heard = True
        at = 0
        while at < len(data):
            if self._whole:
                self._clean = False  # more than one answer to one request
                break
            piece = data[at : at + self._room] if at or len(data) > self._room else data
            if not piece:
                self._broken(f"{'body' if self._status else 'head'} beyond its limit")
                return
            at += len(piece)
            self._room -= len(piece)
            try:
                self._parser.feed_data(piece)
            except HttpParserUpgrade:
                self._clean = False
                self._whole = True
            except HttpParserError as error:
                problem = str(error.__context__ or error)
                if not self._status and self._taken_anyhow(problem):
                    self._status = self._parser.get_status_code()
                self._broken(problem)
                return
        if self._whole:
            self._finish()
        elif self._status:
            self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._clean = False
        if self._status:
            self._whole = True
            self._finish()
        elif self._head is not None and not self._head.done():
            self._head.set_exception(ConnectionLost(str(exc) if exc else "closed without an answer"))

    # -- what the parser calls

    def on_message_begin(self) -> None:
        if self._whole:
            self._clean = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status:
            return  # a trailer, or of an answer too many
        self._headers_left -= 1
        if self._headers_left < 0:
            raise ValueError(f"more than {MAX_HEADERS} headers")
        if b"\0" in value:
            raise ValueError("a header with a zero byte")
        name = name.lower()
        if name in _SINGLE:
            self._headers.setdefault(name, _text(value))
        elif name == _ACCEPT_SIGNATURE:
            more = _text(value)
            self._accept_signature = f"{self._accept_signature}, {more}" if self._accept_signature else more

    def on_headers_complete(self) -> None:
        if self._status:
            return
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 100 or self._parser.get_http_version() not in _VERSIONS:
            raise ValueError(f"status {status} in HTTP/{self._parser.get_http_version()}")
        if 100 <= status <= 199 and status != _SWITCHING:
            self._headers, self._accept_signature = {}, ""
            return
        self._status = status
        self._room = BODY_BYTES

    def on_body(self, body: bytes) -> None:
        if not self._whole and len(self._body) < SNIPPET_BYTES:
            self._body += body[:SNIPPET_BYTES]

    def on_message_complete(self) -> None:
        if self._status and not self._whole:
            assert self._parser is not None
            self._whole = True
            self._clean = self._clean and self._parser.should_keep_alive()  # forgotten right after this

    def _taken_anyhow(self, problem: str) -> bool:
        """Whether the head says that it was taken, and only leaves open where its body ends. RFC 9112 (6.3)
        has such an answer discarded, for the sake of what would be read of it; nothing is. To send it again
        and again, and to hold it against the host, would make nothing better."""
        assert self._parser is not None
        return (
            _LENGTHS.search(problem) is not None
            and 200 <= self._parser.get_status_code() <= 299
            and self._parser.get_http_version() in _VERSIONS
        )

    # -- ends

    def _finish(self) -> None:
        """The answer is there as far as it will come."""
        self._parser = None
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._clean = False  # it answered before it had read what it answers to
        self._tell()
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def _tell(self) -> None:
        if self._head is not None and not self._head.done():
            self._head.set_result(None)

    def _broken(self, problem: str) -> None:
        """No more is read: the connection can have no further use."""
        self._clean = False
        if self._status:  # it stands, whatever its body does
            self._whole = True
            self._finish()
        elif self._head is not None and not self._head.done():
            self._head.set_exception(BrokenAnswer(problem))
        if self._transport is not None:
            self._transport.abort()


def _unpacked(head: bytes, encoding: str) -> bytes:
    """The beginning of a body as it was before it was encoded: hosts compress also where only `identity` is
    accepted. No more than SNIPPET_BYTES are unpacked, whatever a few bytes would become; nothing is left of
    what cannot be."""
    match encoding.strip().lower():
        case "" | "identity":
            return head
        case "gzip" | "x-gzip":
            formats = [16 + zlib.MAX_WBITS]
        case "deflate":
            formats = [zlib.MAX_WBITS, -zlib.MAX_WBITS]  # some leave out the wrapping of RFC 1950
        case _:
            return b""
    for bits in formats:
        with suppress(zlib.error):
            return zlib.decompressobj(bits).decompress(head, SNIPPET_BYTES)
    return b""


@lru_cache(maxsize=128)
def _plain(status: int) -> Answer:
    return Answer(status)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
