"""Answers that are meant to hurt: each with the verdict that it must end in.

Tested one by one in `test_answers.py`, and all at once in `test_memory.py`.
"""

from __future__ import annotations

import gzip
import zlib
from typing import Final, NamedTuple

from servers.remote import Item, drip, hang, pour, reset

from fedsvc.domain.delivery import Reason


class Attack(NamedTuple):
    item: Item
    reason: Reason
    status: int = 0


def _garbage(item: Item) -> Attack:
    return Attack(item, Reason.PROTOCOL_ERROR)


def _stands(item: Item, status: int = 500) -> Attack:
    """The head is sound: its status counts, whatever its body does."""
    return Attack(item, Reason.OK if status < 300 else Reason.SERVER_ERROR, status)


def _taken(item: Item) -> Attack:
    return Attack(item, Reason.OK, 202)


CHUNKED: Final = b"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS: Final = b"HTTP/1.1 500 x\r\n\r\n"
HUGE: Final = b"HTTP/1.1 500 x\r\nContent-Length: 999999999999\r\n\r\n"
BOMB: Final = gzip.compress(b"\0" * 20_000_000)


def _encoded(encoding: bytes, body: bytes) -> bytes:
    return (
        b"HTTP/1.1 500 x\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n"
        % (
            encoding,
            len(body),
        )
        + body
    )


#: no head, or none that is HTTP
HEADS: Final = {
    "silence": Attack(hang, Reason.TIMEOUT),
    "slow status line": Attack(drip(b"", b"HTTP/1.1 202 " + b"a" * 4000), Reason.TIMEOUT),
    "slow headers": Attack(drip(b"HTTP/1.1 202 x\r\n", b"X: 1\r\n"), Reason.TIMEOUT),
    "slow end of the head": Attack(drip(b"HTTP/1.1 202 x\r\nX: ", b"a"), Reason.TIMEOUT),
    "slow interim answers": Attack(drip(b"", b"HTTP/1.1 102 x\r\n\r\n"), Reason.TIMEOUT),
    "endless interim answers": _garbage(pour(b"", b"HTTP/1.1 100 x\r\n\r\n")),
    "endless early hints": _garbage(pour(b"", b"HTTP/1.1 103 x\r\nLink: <a>\r\n\r\n")),
    "endless status line": _garbage(pour(b"HTTP/1.1 202 ", b"a")),
    "endless header": _garbage(pour(b"HTTP/1.1 202 x\r\nX: ", b"a")),
    "endless header name": _garbage(pour(b"HTTP/1.1 202 x\r\n", b"a")),
    "endless headers": _garbage(pour(b"HTTP/1.1 202 x\r\n", b"X: 1\r\n")),
    "endless folded header": _garbage(pour(b"HTTP/1.1 202 x\r\nX: 1\r\n", b" a\r\n")),
    "endless line ends": _garbage(pour(b"", b"\r\n")),
    "endless spaces": _garbage(pour(b"HTTP/1.1 202 x\r\nX:", b" ")),
    "endless zeros": _garbage(pour(b"", b"\0")),
    "10,000 headers": _garbage(
        b"HTTP/1.1 202 x\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(10_000)) + b"\r\n"
    ),
    "a header of 1 MB": _garbage(b"HTTP/1.1 202 x\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n"),
    "100 headers of 8 KB": _garbage(
        b"HTTP/1.1 202 x\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 8000) for n in range(100)) + b"\r\n"
    ),
    "2,000 interim answers": _garbage(b"HTTP/1.1 100 x\r\n\r\n" * 2000 + b"HTTP/1.1 202 x\r\n\r\n"),
    "empty lines only": _garbage(b"\r\n" * 50_000),
    "HTTP/2": _garbage(b"\0\0\x12\4\0\0\0\0\0\0\3\0\0\0d\0\4\0\1\0\0\0\5\0\0\x40\0"),
    "HTTP/2 preface": _garbage(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/0.9": _garbage(b"<html>202 Accepted</html>\r\n\r\n"),
    "HTTP/1.10": _garbage(b"HTTP/1.10 202 x\r\n\r\n"),
    "HTTP/9.9": _garbage(b"HTTP/9.9 202 x\r\n\r\n"),
    "another protocol": _garbage(b"220 mail.example ESMTP\r\n\r\n"),
    "Redis": _garbage(b"-ERR wrong number of arguments\r\n\r\n"),
    "a request": _garbage(b"POST /inbox HTTP/1.1\r\nHost: me\r\nContent-Length: 0\r\n\r\n"),
    "a TLS alert": _garbage(b"\x15\3\3\0\2\2\x28\r\n\r\n"),
    "a status of letters": _garbage(b"HTTP/1.1 OK\r\n\r\n"),
    "a status of two digits": _garbage(b"HTTP/1.1 20\r\n\r\n"),
    "a status of four digits": _garbage(b"HTTP/1.1 2020 x\r\n\r\n"),
    "a negative status": _garbage(b"HTTP/1.1 -20 x\r\n\r\n"),
    "a status with a sign": _garbage(b"HTTP/1.1 +202 x\r\n\r\n"),
    "a status with a fraction": _garbage(b"HTTP/1.1 2.2 x\r\n\r\n"),
    "Arabic digits": _garbage("HTTP/1.1 ٢٠٢ x\r\n\r\n".encode()),
    "no status": _garbage(b"HTTP/1.1\r\n\r\n"),
    "no space": _garbage(b"HTTP/1.1202 x\r\n\r\n"),
    "a zero in a header": _garbage(b"HTTP/1.1 202 x\r\nX: a\0b\r\n\r\n"),
    "a header without a colon": _garbage(b"HTTP/1.1 202 x\r\nX\r\n\r\n"),
    "a header without a name": _garbage(b"HTTP/1.1 202 x\r\n: x\r\n\r\n"),
    "two lengths and a refusal": _garbage(
        b"HTTP/1.1 404 x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
    ),
    "two lengths in HTTP/2.0": _garbage(
        b"HTTP/2.0 202 x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
    ),
    "an early hint with two lengths": _garbage(
        b"HTTP/1.1 103 x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nHTTP/1.1 202 x\r\n\r\n"
    ),
    "switching protocols": Attack(
        pour(b"HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", b"a"),
        Reason.PROTOCOL_ERROR,
        101,
    ),
    "close": Attack(None, Reason.CONNECTION_RESET),
    "reset": Attack(reset, Reason.CONNECTION_RESET),
}

#: heads that leave open where their body ends: what they say was taken is not sent again
LENGTHS: Final = {
    "a negative length": _taken(b"HTTP/1.1 202 x\r\nContent-Length: -1\r\n\r\n"),
    "a length with a sign": _taken(b"HTTP/1.1 202 x\r\nContent-Length: +5\r\n\r\nhello"),
    "a hexadecimal length": _taken(b"HTTP/1.1 202 x\r\nContent-Length: 0x5\r\n\r\nhello"),
    "a length beyond 64 bits": _taken(b"HTTP/1.1 202 x\r\nContent-Length: 18446744073709551617\r\n\r\n"),
    "the same length twice": _taken(b"HTTP/1.1 202 x\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"),
    "two lengths": _taken(b"HTTP/1.1 202 x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    "a list of lengths": _taken(b"HTTP/1.1 202 x\r\nContent-Length: 5, 5\r\n\r\nhello"),
    "an empty length": _taken(b"HTTP/1.1 202 x\r\nContent-Length:\r\n\r\n"),
    "length and chunks": _taken(
        b"HTTP/1.1 202 x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "chunks and length": _taken(
        b"HTTP/1.1 202 x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"
    ),
}

#: a sound head with a body that is not
BODIES: Final = {
    "slow body": _stands(drip(HUGE, b"e")),
    "slow chunks": _stands(drip(CHUNKED, b"1\r\ne\r\n")),
    "slow body without length": _stands(drip(ENDLESS, b"e")),
    "no body": _stands(HUGE),
    "endless body of a huge length": _stands(pour(HUGE, b"e")),
    "endless body without length": _stands(pour(ENDLESS, b"e")),
    "endless chunks": _stands(pour(CHUNKED, b"1000\r\n" + b"e" * 4096 + b"\r\n")),
    "endless chunks of a byte": _stands(pour(CHUNKED, b"1\r\ne\r\n")),
    "endless chunk": _stands(pour(CHUNKED + b"ffffffffffffff\r\n", b"e")),
    "endless chunk extension": _stands(pour(CHUNKED + b"1;", b"a")),
    "endless chunk extensions": _stands(pour(CHUNKED, b"1;" + b"a=b;" * 1000 + b"\r\ne\r\n")),
    "endless chunk length": _stands(pour(CHUNKED, b"0")),
    "endless trailers": _stands(pour(CHUNKED + b"0\r\n", b"X: 1\r\n")),
    "endless trailer": _stands(pour(CHUNKED + b"0\r\nX: ", b"a")),
    "endless success": _stands(pour(b"HTTP/1.1 200 x\r\n\r\n", b"e"), 200),
    "chunk length beyond 64 bits": _stands(CHUNKED + b"f" * 40 + b"\r\ne"),
    "negative chunk length": _stands(CHUNKED + b"-1\r\ne\r\n"),
    "chunk longer than it says": _stands(CHUNKED + b"1\r\neeeeee\r\n0\r\n\r\n"),
    "chunks that are none": _stands(CHUNKED + b"no chunks at all"),
    "unfinished chunks": _stands(CHUNKED + b"5\r\nhello\r\n"),
    "gzip bomb": _stands(_encoded(b"gzip", BOMB)),
    "deflate bomb": _stands(_encoded(b"deflate", zlib.compress(b"\0" * 20_000_000))),
    "bomb in chunks": _stands(
        CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
        + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BOMB), BOMB)
    ),
    "gzip that is none": _stands(_encoded(b"gzip", b"hello")),
    "br": _stands(_encoded(b"br", b"\xcf\xff\xff\x7f\xf8\x27\x00" * 100)),
    "zstd": _stands(_encoded(b"zstd", b"\x28\xb5\x2f\xfd\x04\x00" * 100)),
    "unknown encoding": _stands(_encoded(b"x" * 4000, b"hello")),
    "many encodings": _stands(_encoded(b"gzip, " * 1000 + b"gzip", BOMB)),
    "transfer encoding gzip": _stands(
        pour(b"HTTP/1.1 500 x\r\nTransfer-Encoding: gzip\r\n\r\n", BOMB[:1000])
    ),
    "20,000 answers at once": _stands(b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n" * 20_000),
    "endless answers": _stands(pour(b"", b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n")),
    "garbage behind the answer": _stands(pour(b"HTTP/1.1 500 x\r\nContent-Length: 2\r\n\r\nok", b"garbage")),
    "a body that has none": Attack(b"HTTP/1.1 204 x\r\nContent-Length: 5\r\n\r\nhello", Reason.OK, 204),
    "terminal codes": _stands(b"HTTP/1.1 500 x\r\nContent-Length: 8\r\n\r\n\x1b]0;a\x07\x9b1"),
    "a cookie of 8 KB of quotes": _stands(
        b'HTTP/1.1 500 x\r\nSet-Cookie: a="' + b'\\"' * 4000 + b"\r\nContent-Length: 0\r\n\r\n"
    ),
    "cookies of semicolons": _stands(
        b"HTTP/1.1 500 x\r\n" + b"Set-Cookie: " + b"a=;" * 2600 + b"\r\nContent-Length: 0\r\n\r\n"
    ),
}
ATTACKS: Final = HEADS | LENGTHS | BODIES
