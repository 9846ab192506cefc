"""Every status and every transport error, against the table of what fediverse servers mean with them."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from fedsvc.domain.classify import LONGEST_RETRY_AFTER_MS, Answer, Outcome, TransportError, classify
from fedsvc.domain.delivery import Reason

NOW = 1_795_431_600_000  # Mon, 23 Nov 2026 11:00:00 GMT
PAGE = b"<!DOCTYPE html><html><title>Welcome to nginx!</title></html>"
DELIVERED, RETRY, PERMANENT, FOLLOW = Outcome.DELIVERED, Outcome.RETRY, Outcome.PERMANENT, Outcome.FOLLOW


class Row(NamedTuple):
    outcome: Outcome
    reason: Reason
    #: blamed on the host
    counts: bool = False
    #: Retry-After is honoured
    waits: bool = False
    #: the whole host is slowed down
    slows: bool = False
    #: with another form of signature at once
    knock: bool = False
    gone: bool = False


#: what holds for a whole class, then what differs in it
TABLE: dict[int, Row] = (
    dict.fromkeys(range(100, 200), Row(RETRY, Reason.PROTOCOL_ERROR, counts=True))
    | dict.fromkeys(range(200, 300), Row(DELIVERED, Reason.OK))
    | dict.fromkeys(range(300, 400), Row(PERMANENT, Reason.REDIRECTED))
    | dict.fromkeys(range(400, 500), Row(PERMANENT, Reason.BAD_REQUEST))
    | dict.fromkeys(range(500, 600), Row(RETRY, Reason.SERVER_ERROR, counts=True, waits=True))
    | dict.fromkeys((307, 308), Row(FOLLOW, Reason.REDIRECTED))
    | {
        401: Row(RETRY, Reason.UNAUTHORIZED, knock=True),
        403: Row(RETRY, Reason.FORBIDDEN, knock=True),
        404: Row(PERMANENT, Reason.NOT_FOUND),
        405: Row(PERMANENT, Reason.METHOD_NOT_ALLOWED),
        406: Row(PERMANENT, Reason.NOT_ACCEPTABLE),
        408: Row(RETRY, Reason.REQUEST_TIMEOUT, waits=True),
        410: Row(PERMANENT, Reason.GONE, gone=True),
        413: Row(PERMANENT, Reason.TOO_LARGE),
        415: Row(PERMANENT, Reason.UNSUPPORTED_MEDIA),
        422: Row(PERMANENT, Reason.UNPROCESSABLE),
        425: Row(RETRY, Reason.REQUEST_TIMEOUT, waits=True),
        429: Row(RETRY, Reason.RATE_LIMITED, waits=True, slows=True),
        501: Row(PERMANENT, Reason.NOT_IMPLEMENTED),
        503: Row(RETRY, Reason.UNAVAILABLE, counts=True, waits=True, slows=True),
    }
)
ERRORS: dict[TransportError, Row] = {
    TransportError.CONNECT: Row(RETRY, Reason.CONNECT_FAILED, counts=True),
    TransportError.CONNECT_TIMEOUT: Row(RETRY, Reason.CONNECT_TIMEOUT, counts=True),
    TransportError.TLS: Row(RETRY, Reason.TLS_FAILED, counts=True),
    TransportError.TIMEOUT: Row(RETRY, Reason.TIMEOUT, counts=True),
    TransportError.RESET: Row(RETRY, Reason.CONNECTION_RESET, counts=True),
    TransportError.PROTOCOL: Row(RETRY, Reason.PROTOCOL_ERROR, counts=True),
    TransportError.DNS: Row(RETRY, Reason.DNS_FAILED, counts=True),
    TransportError.NXDOMAIN: Row(RETRY, Reason.DNS_NOT_FOUND, counts=True),
    TransportError.ADDRESS_REFUSED: Row(PERMANENT, Reason.ADDRESS_REFUSED),
    TransportError.WORKER: Row(RETRY, Reason.WORKER_ERROR),
}


def row_of(answer: Answer) -> Row:
    verdict = classify(answer, NOW)
    return Row(
        verdict.outcome,
        verdict.reason,
        verdict.counts_against_host,
        verdict.retry_after_ms == 7000,
        verdict.slows_host,
        verdict.knock,
        verdict.inbox_gone,
    )


@pytest.mark.parametrize("status", TABLE)
def test_a_status_means_what_the_table_says_whatever_comes_with_it(status: int) -> None:
    expected = TABLE[status]
    location = "https://other.example/inbox"
    for content_type in ("", "application/json", "application/activity+json; charset=utf-8"):
        for body in (b"", b'{"error":"no"}', b"\xff\0\x1b[2J"):
            answer = Answer(status, content_type, retry_after="7", location=location, body_head=body)
            assert row_of(answer) == expected
    # without a Location there is nothing to follow, and without Retry-After nothing to wait for
    bare = expected._replace(
        waits=False, outcome=PERMANENT if expected.outcome is FOLLOW else expected.outcome
    )
    assert row_of(Answer(status)) == bare


@pytest.mark.parametrize("status", TABLE)
def test_a_page_makes_a_success_suspect_and_changes_nothing_else(status: int) -> None:
    expected = TABLE[status]
    if 200 <= status <= 299 and status != 204:
        expected = Row(DELIVERED, Reason.SUSPECT, counts=True)
    answer = Answer(status, "text/html", retry_after="7", location="https://o.example/", body_head=PAGE)
    assert row_of(answer) == expected


@pytest.mark.parametrize("error", TransportError)
def test_an_error_means_what_the_table_says(error: TransportError) -> None:
    assert row_of(Answer(error=error, detail="why")) == ERRORS[error]
    # no header can be there, and none that were would count
    assert row_of(Answer(202, retry_after="7", error=error)) == ERRORS[error]


#: Retry-After -> milliseconds to wait
FORMS: dict[str, int | None] = {
    "0": 0,
    "1": 1000,
    "007": 7000,
    " 7\t": 7000,
    "86400": 86_400_000,
    "2592000": LONGEST_RETRY_AFTER_MS,
    "2592001": LONGEST_RETRY_AFTER_MS,
    "9223372036854775808": LONGEST_RETRY_AFTER_MS,
    "9" * 64: LONGEST_RETRY_AFTER_MS,
    "9" * 10_000: None,
    "0" * 10_000: None,
    "": None,
    " \t ": None,
    "-1": None,
    "-0": None,
    "+7": None,
    "7.5": None,
    "7.": None,
    ".5": None,
    "7,5": None,
    "7, 9": None,
    "7;9": None,
    "1e3": None,
    "0x10": None,
    "1_000": None,
    "7s": None,
    "7 seconds": None,
    "PT7S": None,
    "NaN": None,
    "nan": None,
    "inf": None,
    "Infinity": None,
    "-Infinity": None,
    "null": None,
    "\u0667": None,
    "\uff17": None,
    "\u00b2": None,
    "7\0": None,
    "7\n9": None,
    # IMF-fixdate, RFC 850 and asctime (RFC 9110 section 5.6.7)
    "Mon, 23 Nov 2026 11:00:07 GMT": 7000,
    "Monday, 23-Nov-26 11:00:07 GMT": 7000,
    "Mon Nov 23 11:00:07 2026": 7000,
    "Tue Dec  1 11:00:00 2026": 8 * 86_400_000,
    "Mon, 23 Nov 2026 11:00:00 GMT": 0,
    # the past
    "Mon, 23 Nov 2026 10:59:59 GMT": 0,
    "Sunday, 06-Nov-94 08:49:37 GMT": 0,
    "Sun Nov  6 08:49:37 1994": 0,
    "Thu, 01 Jan 1970 00:00:00 GMT": 0,
    "Mon, 01 Jan 0001 00:00:00 GMT": 0,
    # far off
    "Fri, 31 Dec 9999 23:59:59 GMT": LONGEST_RETRY_AFTER_MS,
    "Mon, 23 Nov 2099 11:00:00 GMT": LONGEST_RETRY_AFTER_MS,
    # none of them
    "Mon, 23 Nov 99999 11:00:07 GMT": None,
    "Mon, 32 Nov 2026 11:00:07 GMT": None,
    "Mon, 23 Nov 2026 25:00:07 GMT": None,
    "Mon, 23 Nov 2026 11:60:07 GMT": None,
    "Mon, 00 Foo 0000 00:00:00 GMT": None,
    "2026-11-23T11:00:07Z": None,
    "tomorrow": None,
    "Mon, 23 Nov 2026 11:00:07 GMT" + " " * 10_000 + "x": None,
    "Mon, " * 2000: None,
    "(" * 64: None,
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: ascii(form[:40]))
@pytest.mark.parametrize("status", [status for status, row in TABLE.items() if row.waits and status < 505])
def test_retry_after_is_read_in_its_forms_and_in_no_other(status: int, form: str) -> None:
    verdict = classify(Answer(status, retry_after=form), NOW)
    assert verdict.retry_after_ms == FORMS[form]


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Mon, 23 Nov 2026 11:00:00 GMT", 7000),
        ("Mon, 23 Nov 2026 12:00:00 GMT", 0),
        ("Mon, 23 Nov 2026 10:00:00 GMT", 3_607_000),
        ("Thu, 01 Jan 1970 00:00:00 GMT", LONGEST_RETRY_AFTER_MS),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 0),
        ("no date", 7000),
        ("9" * 10_000, 7000),
        ("", 7000),
    ],
)
def test_no_clock_of_theirs_makes_us_wait_beyond_the_limit(date: str, expected: int) -> None:
    answer = Answer(503, retry_after="Mon, 23 Nov 2026 11:00:07 GMT", date=date)
    assert classify(answer, NOW).retry_after_ms == expected
