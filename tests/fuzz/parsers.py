"""What reads bytes of strangers, each with what may come of it: a result that is sound, or its one error."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from fedsvc.domain.activity import parse_activity
from fedsvc.domain.classify import Answer, Outcome, classify
from fedsvc.domain.delivery import Attempt, Delivery, DeliveryId, DeliveryState, Priority, Reason
from fedsvc.domain.inbox import MAX_URL, origin_of, parse_host, parse_inbox
from fedsvc.domain.keys import KeyCipher, load_private_key
from fedsvc.domain.message import Message
from fedsvc.domain.message_signatures import wanted
from fedsvc.errors import (
    ConfigurationError,
    FedsvcError,
    InvalidActivity,
    InvalidInbox,
    InvalidInput,
    InvalidKey,
    KeyUnavailable,
    QueueCorrupt,
)
from fedsvc.handlers.registry import Registry
from fedsvc.queue import outcome
from fedsvc.queue.record import Record, unpack
from fedsvc.server import pages
from fedsvc.server.limits import parse_limits
from fedsvc.server.tokens import parse_entries
from fedsvc.server.watch import Cursor
from fuzz.answers import http_answer

HANDLERS = Registry.built_in()
CIPHER = KeyCipher([b"k" * 32, b"l" * 32])
NOW_MS = 1_700_000_000_000
YEAR_MS = 366 * 86_400_000


def text_of(data: bytes) -> str:
    """As it would come in a protobuf string."""
    return data.decode("utf-8", "replace")


def header_of(data: bytes) -> str:
    """As aiohttp hands over header values."""
    return data.decode("utf-8", "surrogateescape")


def activity(data: bytes) -> None:
    try:
        parsed = parse_activity(data, max_bytes=65_536)
        rules = HANDLERS.rules(parsed)
    except InvalidActivity as error:
        assert error.field.startswith("activity")
        assert len(str(error)) < 1000, "an error repeats no activity"
        return
    assert parsed.id.lower().startswith(("http://", "https://"))
    assert parsed.type
    assert parsed.actor
    assert rules.priority
    for key in (rules.relation.ordering_key, rules.relation.family):
        key.encode("utf-8", "surrogatepass")


def inbox(data: bytes) -> None:
    text = text_of(data)
    try:
        found = parse_inbox(text, allow_http=True)
    except InvalidInbox:
        return
    assert parse_inbox(found.url, allow_http=True) == found, "the normal form of a normal form"
    assert found.url.isascii()
    assert len(found.url) <= MAX_URL * 3
    parts = urlsplit(found.url)
    assert (parts.hostname, parts.username, parts.password, parts.fragment) == (found.host, None, None, "")
    assert parts.scheme in ("http", "https")
    last = found.host.rstrip(".").rpartition(".")[2]
    if re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", last):  # whoever reads it as an address reads a plain one
        assert str(ipaddress.ip_address(found.host)) == found.host


def host(data: bytes) -> None:
    try:
        found = parse_host(text_of(data))
    except ValueError:
        return
    assert parse_host(found) == found


def key_id(data: bytes) -> None:
    try:
        found = origin_of(text_of(data))
    except InvalidKey:
        return
    assert parse_host(found) == found


def retry_after(data: bytes) -> None:
    first, _, rest = data.partition(b"\n")
    for status in (429, 503):
        answer = Answer(status=status, retry_after=header_of(first), date=header_of(rest))
        verdict = classify(answer, NOW_MS)
        assert verdict.outcome is Outcome.RETRY
        assert verdict.retry_after_ms is None or 0 <= verdict.retry_after_ms <= YEAR_MS


def answer(data: bytes) -> None:
    """A whole answer: status, headers and the beginning of a body."""
    status = 100 + int.from_bytes(data[:2], "big") % 900
    kind, _, rest = data[2:].partition(b"\n")
    location, _, body = rest.partition(b"\n")
    verdict = classify(
        Answer(
            status=status,
            content_type=header_of(kind),
            location=header_of(location),
            accept_signature=header_of(kind),
            body_head=body,
        ),
        NOW_MS,
    )
    assert len(verdict.snippet.encode()) <= 1024
    assert (verdict.snippet + verdict.detail).isprintable()


def accept_signature(data: bytes) -> None:
    for algorithm in ("rsa", "ed25519"):
        coverage = wanted(header_of(data), algorithm)
        if coverage is None:
            continue
        assert "content-digest" in coverage.components or "digest" in coverage.components
        assert "@target-uri" in coverage.components or "@authority" in coverage.components


def private_key(data: bytes) -> None:
    try:
        key = load_private_key(data)
    except InvalidKey as error:
        assert "PRIVATE" not in str(error)
        return
    assert key.algorithm in ("rsa", "ed25519")
    key.sign(b"data")


def stored_key(data: bytes) -> None:
    try:
        CIPHER.decrypt(data, context=b"context")
    except KeyUnavailable:
        return
    raise AssertionError("nobody has sealed this")


def _anything(position: object) -> object:
    return position


def page_token(data: bytes) -> None:
    try:
        position = pages.decode(text_of(data), "arguments", read=_anything)
    except InvalidInput as error:
        assert error.field == "page_token"
        return
    again = pages.encode(position, "arguments")
    assert not data or pages.decode(again, "arguments", read=_anything) == position


def cursor(data: bytes) -> None:
    try:
        found = Cursor.parse(text_of(data), 4)
    except InvalidInput as error:
        assert error.field == "cursor"
        return
    assert Cursor.parse(str(found), 4) == found


def delivery_id(data: bytes) -> None:
    try:
        found = DeliveryId.parse(text_of(data))
    except ValueError:
        return
    assert DeliveryId.parse(str(found)) == found
    assert 0 <= found.partition < 2**15
    assert 0 <= found.sequence < 2**63


def stored_message(data: bytes) -> None:
    try:
        message = Message.unpack(b"{}", data)
    except (ValueError, FedsvcError):
        return
    assert replace(Message.unpack(b"{}", message.pack()), digest=message.digest) == message


def stored_record(data: bytes) -> None:
    try:
        found = unpack(data, DeliveryId(1, NOW_MS * 1000))
    except (ValueError, FedsvcError):
        return
    if isinstance(found, Record):
        found.pack(NOW_MS)


def stored_outcome(data: bytes) -> None:
    id = DeliveryId(1, NOW_MS * 1000)
    try:
        found = outcome.unpack(data, id, DeliveryState.DEAD, NOW_MS * 1000)
    except QueueCorrupt:
        return
    assert outcome.unpack(outcome.pack(found), id, DeliveryState.DEAD, NOW_MS * 1000) == found


def tokens(data: bytes) -> None:
    try:
        entries = parse_entries(text_of(data))
    except ValueError as error:
        assert str(error).startswith("entry ")
        return
    assert all(len(entry.digest) == 32 for entry in entries)


def limits(data: bytes) -> None:
    try:
        parse_limits(text_of(data))
    except ConfigurationError as error:
        assert error.setting == "FEDSVC_LIMITS"


@dataclass(frozen=True)
class Parser:
    check: Callable[[bytes], None]
    #: bytes of an input, at most
    longest: int = 4096
    seeds: tuple[bytes, ...] = ()
    #: seconds of this process's time that one input may take
    seconds: float = 1.0


_SAMPLES = Path(__file__).parents[1] / "data" / "activities"
_ACTIVITIES = tuple(path.read_bytes() for path in sorted(_SAMPLES.glob("*.json")))
_CORPUS = Path(__file__).parent / "corpus"
_PEMS = tuple(path.read_bytes() for path in sorted((_CORPUS / "private-key").glob("*.pem")))
_DEAD = Delivery(
    DeliveryId(1, NOW_MS * 1000), DeliveryState.DEAD, "https://me.example/1", "Like", "https://me.example/u",
    "https://a.example/inbox", "a.example", "me.example", "https://me.example/u#k", Priority.URGENT, 2,
    Reason.GONE, 410, "gone", history=(Attempt(NOW_MS, 5, 503, Reason.UNAVAILABLE),),
)  # fmt: skip

PARSERS = {
    "activity": Parser(activity, 65_536, _ACTIVITIES),
    "inbox": Parser(
        inbox,
        seeds=(
            b"https://a.example/inbox?x=1",
            b"http://127.0.0.1:8080/",
            b"https://[::ffff:1.2.3.4]/%41/../x",
            "https://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example".encode(),
            b"https://0x7f.1/",
            b"https://user:pw@a.example:443#f",
        ),
    ),
    "host": Parser(host, 512, (b"a.example", b"::1", b"[::1]", b"127.1", b"xn--bcher-kva.example")),
    "key id": Parser(key_id, seeds=(b"https://me.example/u/ada#main-key", b"https://me.example:8443/a?b#c")),
    "Retry-After": Parser(
        retry_after,
        512,
        (
            b"120",
            b"Wed, 21 Oct 2015 07:28:00 GMT\nWed, 21 Oct 2015 07:28:00 GMT",
            b"-1",
            b"1e9",
            b"Sunday, 06-Nov-94 08:49:37 GMT",
            b"Sun Nov  6 08:49:37 1994",
        ),
    ),
    "answer": Parser(answer, 8192, (b"\x00\x64text/html\n\n<!doctype html><html>", b"\x00\xd2\n/inbox\n{}")),
    "Accept-Signature": Parser(
        accept_signature,
        seeds=(
            b'sig1=("@method" "@target-uri" "content-digest");created;keyid="k";alg="ed25519";tag="app"',
            b'a=("@method");nonce="x", b=("@authority" "@request-target" "content-digest");expires',
        ),
    ),
    "private key": Parser(private_key, 8192, _PEMS, seconds=3.0),
    "stored key": Parser(stored_key, 512, (CIPHER.encrypt(b"x" * 48, context=b"other"),)),
    "page token": Parser(page_token, 1024, (pages.encode([1, "x"], "arguments").encode(),)),
    "cursor": Parser(cursor, 512, (str(Cursor([1, 2, 3, 4])).encode(),)),
    "delivery id": Parser(delivery_id, 128, (str(DeliveryId(3, NOW_MS * 1000)).encode(),)),
    "stored message": Parser(
        stored_message, seeds=(Message(b"{}", "https://a", "Like", "https://b", "k#k", "f", "o").pack(),)
    ),
    "stored record": Parser(stored_record),
    "stored outcome": Parser(stored_outcome, seeds=(outcome.pack(_DEAD),)),
    "HTTP answer": Parser(
        http_answer,
        65_536,
        (
            b"\xffHTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nRetry-After: 1\r\n\r\n{}",
            b"\x02HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5;x=y\r\nhello\r\n0\r\nTrailer: x\r\n\r\nHTTP/1.1 500 No\r\n\r\n",
            b"\x10HTTP/1.0 410 Gone\nConnection: close\n\n<html>",
            b"\x40HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n\0\0",
        ),
    ),
    "tokens": Parser(tokens, seeds=(b"piefed:deliver+keys:me.example+::1:" + b"ab" * 32,)),
    "limits": Parser(limits, 1024, (b"ada:calls=1:rate=2.5:bytes=3:fan_out=4 @::1:rate=1",)),
}
