from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain.classify import (
    LONGEST_RETRY_AFTER_MS,
    SMALLEST_LIMIT,
    Answer,
    Outcome,
    TransportError,
    Verdict,
    classify,
    clean,
    sized,
    snippet,
    words,
)
from fedsvc.domain.delivery import Reason

NOW = 1_795_431_600_000  # Mon, 23 Nov 2026 11:00:00 GMT
PAGE = b"\n<!DOCTYPE html>\n<html><title>Buy this domain</title></html>"


def judged(status: int, **fields: Any) -> Verdict:
    return classify(Answer(status, **fields), NOW)


DELIVERED, RETRY, PERMANENT, FOLLOW = Outcome.DELIVERED, Outcome.RETRY, Outcome.PERMANENT, Outcome.FOLLOW
BY_STATUS = [
    (200, DELIVERED, Reason.OK, set()),
    (201, DELIVERED, Reason.OK, set()),
    (202, DELIVERED, Reason.OK, set()),
    (204, DELIVERED, Reason.OK, set()),
    (299, DELIVERED, Reason.OK, set()),
    (300, PERMANENT, Reason.REDIRECTED, set()),
    (301, PERMANENT, Reason.REDIRECTED, set()),
    (302, PERMANENT, Reason.REDIRECTED, set()),
    (303, PERMANENT, Reason.REDIRECTED, set()),
    (304, PERMANENT, Reason.REDIRECTED, set()),
    (307, PERMANENT, Reason.REDIRECTED, set()),  # without a Location there is nothing to follow
    (308, PERMANENT, Reason.REDIRECTED, set()),
    (400, PERMANENT, Reason.BAD_REQUEST, set()),
    (401, RETRY, Reason.UNAUTHORIZED, {"knock"}),
    (402, PERMANENT, Reason.BAD_REQUEST, set()),
    (403, RETRY, Reason.FORBIDDEN, {"knock"}),
    (404, PERMANENT, Reason.NOT_FOUND, set()),
    (405, PERMANENT, Reason.METHOD_NOT_ALLOWED, set()),
    (406, PERMANENT, Reason.NOT_ACCEPTABLE, set()),
    (408, RETRY, Reason.REQUEST_TIMEOUT, set()),
    (409, PERMANENT, Reason.BAD_REQUEST, set()),
    (410, PERMANENT, Reason.GONE, {"inbox_gone"}),
    (413, PERMANENT, Reason.TOO_LARGE, set()),
    (415, PERMANENT, Reason.UNSUPPORTED_MEDIA, set()),
    (418, PERMANENT, Reason.BAD_REQUEST, set()),
    (422, PERMANENT, Reason.UNPROCESSABLE, set()),
    (425, RETRY, Reason.REQUEST_TIMEOUT, set()),
    (429, RETRY, Reason.RATE_LIMITED, {"slows_host"}),
    (451, PERMANENT, Reason.BAD_REQUEST, set()),
    (499, PERMANENT, Reason.BAD_REQUEST, set()),
    (500, RETRY, Reason.SERVER_ERROR, {"counts_against_host"}),
    (501, PERMANENT, Reason.NOT_IMPLEMENTED, set()),
    (502, RETRY, Reason.SERVER_ERROR, {"counts_against_host"}),
    (503, RETRY, Reason.UNAVAILABLE, {"counts_against_host", "slows_host"}),
    (504, RETRY, Reason.SERVER_ERROR, {"counts_against_host"}),
    (522, RETRY, Reason.SERVER_ERROR, {"counts_against_host"}),
    (599, RETRY, Reason.SERVER_ERROR, {"counts_against_host"}),
    (101, RETRY, Reason.PROTOCOL_ERROR, {"counts_against_host"}),
    (600, RETRY, Reason.PROTOCOL_ERROR, {"counts_against_host"}),
    (999, RETRY, Reason.PROTOCOL_ERROR, {"counts_against_host"}),
]
FLAGS = ("counts_against_host", "slows_host", "inbox_gone", "knock")


@pytest.mark.parametrize(("status", "outcome", "reason", "flags"), BY_STATUS)
def test_a_status_means_what_the_table_says(
    status: int, outcome: Outcome, reason: Reason, flags: set[str]
) -> None:
    verdict = judged(status)
    assert (verdict.outcome, verdict.reason, verdict.status) == (outcome, reason, status)
    assert {name for name in FLAGS if getattr(verdict, name)} == flags


BY_ERROR = [
    (TransportError.CONNECT, RETRY, Reason.CONNECT_FAILED, True),
    (TransportError.CONNECT_TIMEOUT, RETRY, Reason.CONNECT_TIMEOUT, True),
    (TransportError.TLS, RETRY, Reason.TLS_FAILED, True),
    (TransportError.DNS, RETRY, Reason.DNS_FAILED, True),
    (TransportError.NXDOMAIN, RETRY, Reason.DNS_NOT_FOUND, True),
    (TransportError.TIMEOUT, RETRY, Reason.TIMEOUT, True),
    (TransportError.RESET, RETRY, Reason.CONNECTION_RESET, True),
    (TransportError.PROTOCOL, RETRY, Reason.PROTOCOL_ERROR, True),
    (TransportError.ADDRESS_REFUSED, PERMANENT, Reason.ADDRESS_REFUSED, False),
    (TransportError.WORKER, RETRY, Reason.WORKER_ERROR, False),
]


def test_every_transport_error_has_a_row() -> None:
    assert {row[0] for row in BY_ERROR} == set(TransportError)


@pytest.mark.parametrize(("error", "outcome", "reason", "counts"), BY_ERROR)
def test_without_an_answer_the_error_decides(
    error: TransportError, outcome: Outcome, reason: Reason, counts: bool
) -> None:
    verdict = classify(Answer(error=error, detail="why"), NOW)
    assert verdict == Verdict(
        outcome,
        reason,
        detail="why",
        counts_against_host=counts,
    )


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_that_keeps_method_and_body_is_followed(status: int) -> None:
    verdict = judged(status, location=" https://other.example/inbox ")
    assert (verdict.outcome, verdict.location) == (FOLLOW, "https://other.example/inbox")


@pytest.mark.parametrize("status", [301, 302, 303])
def test_another_redirect_fails_and_names_its_target(status: int) -> None:
    verdict = judged(status, location="https://other.example/inbox")
    assert (verdict.outcome, verdict.detail) == (PERMANENT, "to https://other.example/inbox")


@pytest.mark.parametrize("status", [200, 202])
def test_a_page_instead_of_an_answer_is_delivered_but_suspect(status: int) -> None:
    verdict = judged(status, content_type="text/html; charset=utf-8", body_head=PAGE)
    assert (verdict.outcome, verdict.reason) == (DELIVERED, Reason.SUSPECT)
    assert verdict.counts_against_host
    assert "Buy this domain" in verdict.snippet


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", b""),  # what frameworks send with an empty answer
        ("text/html; charset=utf-8", b"OK"),
        ("application/json", b'{"note": "<html>"}'),
        ("", b""),
    ],
)
def test_a_short_answer_labelled_html_is_not_suspect(content_type: str, body: bytes) -> None:
    assert judged(202, content_type=content_type, body_head=body) == Verdict(DELIVERED, Reason.OK, 202)


def test_a_proxys_page_with_a_502_is_retried() -> None:
    verdict = judged(502, content_type="text/html", body_head=b"<html><h1>502 Bad Gateway</h1></html>")
    assert (verdict.outcome, verdict.reason) == (RETRY, Reason.SERVER_ERROR)


@pytest.mark.parametrize(
    ("body", "knock"), [(b'{"error": "Invalid HTTP Signature"}', True), (b"missing field: object", False)]
)
def test_a_400_knocks_only_if_it_names_a_signature(body: bytes, knock: bool) -> None:
    verdict = judged(400, body_head=body)
    assert (verdict.outcome, verdict.knock) == (PERMANENT, knock)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("120", 120_000),
        (" 7 ", 7_000),
        ("0", 0),
        ("Mon, 23 Nov 2026 11:00:30 GMT", 30_000),
        ("Monday, 23-Nov-26 11:00:30 GMT", 30_000),
        ("Mon Nov 23 11:00:30 2026", 30_000),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0),
        ("99999999999999999999", LONGEST_RETRY_AFTER_MS),
        ("Mon, 23 Nov 2099 11:00:00 GMT", LONGEST_RETRY_AFTER_MS),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("\u0661", None),
        ("Mon, 99 Nov 2026 11:00:00 GMT", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_retry_after_is_read_in_both_forms(status: int, header: str, expected: int | None) -> None:
    assert judged(status, retry_after=header).retry_after_ms == expected


def test_a_retry_after_date_is_read_against_the_remotes_own_clock() -> None:
    verdict = judged(503, retry_after="Mon, 23 Nov 2026 15:00:10 GMT", date="Mon, 23 Nov 2026 15:00:00 GMT")
    assert verdict.retry_after_ms == 10_000


@pytest.mark.parametrize("status", [202, 301, 401, 404, 501])
def test_retry_after_means_nothing_where_nothing_waits(status: int) -> None:
    assert judged(status, retry_after="120").retry_after_ms is None


def test_the_body_pyfedi_acts_on_is_in_the_snippet() -> None:
    assert judged(400, body_head=b'{"error":"person_is_banned_from_site"}').snippet == (
        '{"error":"person_is_banned_from_site"}'
    )


LARGE = f", and some servers take {SMALLEST_LIMIT} at most"


@pytest.mark.parametrize(
    ("body", "size", "text"),
    [
        (b"", 2000, "the activity has 2000 bytes"),
        (b"<h1>413</h1>", 2000, "<h1>413</h1> (the activity has 2000 bytes)"),
        (b"no", 70_000, f"no (the activity has 70000 bytes{LARGE})"),
    ],
)
def test_a_413_says_how_large_the_activity_was(body: bytes, size: int, text: str) -> None:
    verdict = sized(judged(413, body_head=body), size)
    assert (verdict.outcome, verdict.reason, words(verdict)) == (PERMANENT, Reason.TOO_LARGE, text)


@pytest.mark.parametrize("body", [b"x" * 5000, "ü".encode() * 5000, b"\xff" * 5000])
def test_what_it_says_of_the_size_fits_with_any_body(body: bytes) -> None:
    shown = words(sized(judged(413, body_head=body), 70_000))
    assert len(shown.encode()) <= 1024
    assert shown.endswith(f"{LARGE})")


@pytest.mark.parametrize("status", [301, 302, 303, 308])
def test_where_a_redirect_leads_is_shown_whatever_its_body_says(status: int) -> None:
    target = "https://new.example/inbox"
    assert words(judged(status, location=target)) == f"to {target}"
    with_page = judged(status, location=target, body_head=b"<h1>Moved</h1>")
    assert words(with_page) == f"<h1>Moved</h1> (to {target})"
    for long in ("https://new.example/" + "ü" * 2000, "\U0001f98a" * 2000):
        for body in (b"", b"x" * 5000, b"\xff" * 5000):
            shown = words(judged(status, location=long, body_head=body))
            assert long[:80] in shown
            assert len(shown.encode()) <= 1024


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400),
        Answer(404, body_head=b"who?"),
        Answer(422),
        Answer(error=TransportError.RESET, detail="why"),
    ],
)
def test_any_refusal_of_what_some_find_too_large_says_so_and_keeps_the_remotes_words(answer: Answer) -> None:
    plain = classify(answer, NOW)
    assert sized(plain, SMALLEST_LIMIT) == plain
    told = sized(plain, SMALLEST_LIMIT + 1)
    assert told.detail.endswith(f"the activity has 65537 bytes{LARGE}")
    assert told.detail.startswith(plain.detail)
    assert replace(told, detail=plain.detail) == plain
    assert f"the activity has 65537 bytes{LARGE}" in words(told)


@pytest.mark.parametrize("status", [202, 301, 401, 410, 429, 500, 503])
def test_the_size_is_not_told_where_it_is_not_why(status: int) -> None:
    verdict = judged(status, body_head=b"no")
    told = sized(verdict, 100_000)
    assert told == verdict or (status == 410 and told.detail)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"a\r\n\tb", "a   b"),
        (b"\x1b[31mred\x00", "\ufffd[31mred\ufffd"),
        ("\u202egnp.exe".encode(), "\ufffdgnp.exe"),
        (b"\xff\xfeok", "\ufffd\ufffdok"),
        ("Grüße".encode(), "Grüße"),
        (b"x" * 5000, "x" * 1024),
    ],
)
def test_a_snippet_is_short_and_harmless(body: bytes, text: str) -> None:
    assert snippet(body) == text


@given(st.binary(max_size=3000))
def test_a_snippet_always_fits_and_prints(body: bytes) -> None:
    text = snippet(body)
    assert len(text.encode()) <= 1024
    assert text.isprintable()


@given(st.text(max_size=50), st.integers(0, 40))
def test_clean_text_is_bounded_and_prints(text: str, limit: int) -> None:
    assert len(clean(text, limit)) <= limit
    assert clean(text, limit).isprintable()


@given(
    st.builds(
        Answer,
        status=st.integers(),
        content_type=st.text(max_size=50),
        retry_after=st.one_of(st.text(max_size=80), st.from_regex(r"[A-Z][a-z]{2}, [-+0-9: a-zA-Z]{1,40}")),
        location=st.text(max_size=50),
        date=st.text(max_size=50),
        body_head=st.binary(max_size=2000),
        error=st.one_of(st.none(), st.sampled_from(TransportError)),
        detail=st.text(max_size=600),
    ),
    st.integers(0, 2**53),
)
def test_no_answer_whatever_makes_it_raise(answer: Answer, now_ms: int) -> None:
    verdict = classify(answer, now_ms)
    assert verdict.retry_after_ms is None or 0 <= verdict.retry_after_ms <= LONGEST_RETRY_AFTER_MS
    assert all(field is not None for name, field in asdict(verdict).items() if name != "retry_after_ms")
