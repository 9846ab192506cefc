"""What the answer of an inbox means: one pure function from an `Answer` to a `Verdict`.

A status decides by RFC 9110 and by what fediverse servers mean with it; without a status the
`TransportError` decides. `classify` never raises, whatever a remote sends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Final, assert_never

from fedsvc.domain.delivery import SNIPPET_BYTES, Reason

#: a Retry-After beyond this is cut down to it; no delivery lives longer anyway
LONGEST_RETRY_AFTER_MS: Final = 30 * 86_400_000
DETAIL_CHARACTERS: Final = 512
#: bytes of an activity that every server takes: Misskey takes no more
SMALLEST_LIMIT: Final = 65_536

_SECONDS = re.compile(r"[0-9]{1,64}")
_HTML_PAGE = re.compile(rb"<(?:!doctype\s+html|html[\s>])", re.IGNORECASE)


class Outcome(Enum):
    """What to do with the delivery after one answer."""

    DELIVERED = auto()
    RETRY = auto()
    PERMANENT = auto()
    #: follow `Verdict.location` with the same method and body; never leaves the deliverer
    FOLLOW = auto()


class TransportError(Enum):
    """Why there was no answer."""

    CONNECT = auto()
    CONNECT_TIMEOUT = auto()
    TLS = auto()
    DNS = auto()
    NXDOMAIN = auto()
    #: our deadline for the whole exchange
    TIMEOUT = auto()
    RESET = auto()
    PROTOCOL = auto()
    ADDRESS_REFUSED = auto()
    #: a defect of ours; nothing can be said of the host
    WORKER = auto()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a status with the headers that matter, or an error. Headers are as received."""

    status: int = 0
    content_type: str = ""
    retry_after: str = ""
    location: str = ""
    date: str = ""
    accept_signature: str = ""
    #: the first bytes of the body; at least SNIPPET_BYTES of them if it has as many
    body_head: bytes = b""
    error: TransportError | None = None
    #: what an operator should read about `error`; never holds secrets
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    reason: Reason
    status: int = 0  # HTTP status, 0 when there was no answer
    snippet: str = ""  # of anything but a plain delivery; at most SNIPPET_BYTES of UTF-8
    detail: str = ""  # one line for operators: the transport error, the target of a redirect
    retry_after_ms: int | None = None  # from now
    counts_against_host: bool = False  # as a failure, for its health
    slows_host: bool = False  # the whole host asked us to slow down
    inbox_gone: bool = False
    #: another signature scheme may be taken
    knock: bool = False
    location: str = ""  # as received, of a redirect to follow
    accept_signature: str = ""  # as received, with a refusal


#: what nearly every delivery ends with, made once
_DELIVERED: Final = {status: Verdict(Outcome.DELIVERED, Reason.OK, status) for status in range(200, 300)}


def classify(answer: Answer, now_ms: int) -> Verdict:
    """What `answer`, received at `now_ms` (milliseconds since the epoch), means."""
    if answer.error is not None:
        return _without_answer(answer.error, answer.detail)
    status = answer.status
    if 200 <= status <= 299:
        if status != 204 and _is_html_page(answer):
            return _verdict(answer, Outcome.DELIVERED, Reason.SUSPECT, counts_against_host=True)
        return _DELIVERED[status]
    if 300 <= status <= 399:
        return _redirect(answer)
    if 400 <= status <= 499:
        return _refused(answer, now_ms)
    if 500 <= status <= 599:
        return _failed(answer, now_ms)
    return _verdict(answer, Outcome.RETRY, Reason.PROTOCOL_ERROR, counts_against_host=True)


def sized(verdict: Verdict, body_bytes: int) -> Verdict:
    """The verdict on an activity of `body_bytes`, which says so where that may be why it was not taken: with
    a 413, and with any other refusal or a broken connection if some servers find it too large."""
    refused = verdict.outcome is Outcome.PERMANENT and 400 <= verdict.status <= 499
    if not refused and verdict.reason is not Reason.CONNECTION_RESET:
        return verdict
    large = body_bytes > SMALLEST_LIMIT
    if not large and verdict.status != 413:
        return verdict
    said = f"the activity has {body_bytes} bytes"
    if large:
        said += f", and some servers take {SMALLEST_LIMIT} at most"
    return replace(verdict, detail=f"{verdict.detail}; {said}" if verdict.detail else said)


def words(verdict: Verdict) -> str:
    """What outcomes and dead letters show of it, at most SNIPPET_BYTES of UTF-8: the remote's words, and
    behind them what is to be said beside, as where a redirect leads."""
    detail = _fitting(verdict.detail, SNIPPET_BYTES // 2)
    if not verdict.snippet or not detail:
        return verdict.snippet or detail
    end = f" ({detail})"
    return _fitting(verdict.snippet, SNIPPET_BYTES - len(end.encode())) + end


def _redirect(answer: Answer) -> Verdict:
    location = answer.location.strip()
    follow = answer.status in (307, 308) and bool(location)
    return _verdict(
        answer,
        Outcome.FOLLOW if follow else Outcome.PERMANENT,
        Reason.REDIRECTED,
        location=location if follow else "",
        detail=clean(f"to {location}" if location else "without a Location", DETAIL_CHARACTERS),
    )


_REFUSALS: Final = {
    404: Reason.NOT_FOUND,
    405: Reason.METHOD_NOT_ALLOWED,
    406: Reason.NOT_ACCEPTABLE,
    413: Reason.TOO_LARGE,
    415: Reason.UNSUPPORTED_MEDIA,
    422: Reason.UNPROCESSABLE,
}


def _refused(answer: Answer, now_ms: int) -> Verdict:
    match answer.status:
        case 401:
            return _verdict(answer, Outcome.RETRY, Reason.UNAUTHORIZED, knock=True)
        case 403:
            return _verdict(answer, Outcome.RETRY, Reason.FORBIDDEN, knock=True)
        case 408 | 425:
            return _verdict(
                answer, Outcome.RETRY, Reason.REQUEST_TIMEOUT, retry_after_ms=_retry_after(answer, now_ms)
            )
        case 410:
            return _verdict(answer, Outcome.PERMANENT, Reason.GONE, inbox_gone=True)
        case 429:
            return _verdict(
                answer,
                Outcome.RETRY,
                Reason.RATE_LIMITED,
                retry_after_ms=_retry_after(answer, now_ms),
                slows_host=True,
            )
        case 400:
            # some servers say "signature" with a 400, in words or in a header, where others answer 401
            named = b"signature" in answer.body_head[:SNIPPET_BYTES].lower()
            knock = named or bool(answer.accept_signature)
            return _verdict(answer, Outcome.PERMANENT, Reason.BAD_REQUEST, knock=knock)
        case status:
            return _verdict(answer, Outcome.PERMANENT, _REFUSALS.get(status, Reason.BAD_REQUEST))


def _failed(answer: Answer, now_ms: int) -> Verdict:
    match answer.status:
        case 501:
            return _verdict(answer, Outcome.PERMANENT, Reason.NOT_IMPLEMENTED)
        case 503:
            return _verdict(
                answer,
                Outcome.RETRY,
                Reason.UNAVAILABLE,
                retry_after_ms=_retry_after(answer, now_ms),
                counts_against_host=True,
                slows_host=True,
            )
        case _:
            return _verdict(
                answer,
                Outcome.RETRY,
                Reason.SERVER_ERROR,
                retry_after_ms=_retry_after(answer, now_ms),
                counts_against_host=True,
            )


def _without_answer(error: TransportError, detail: str) -> Verdict:
    detail = clean(detail, DETAIL_CHARACTERS)
    match error:
        case TransportError.CONNECT:
            reason = Reason.CONNECT_FAILED
        case TransportError.CONNECT_TIMEOUT:
            reason = Reason.CONNECT_TIMEOUT
        case TransportError.TLS:
            reason = Reason.TLS_FAILED
        case TransportError.DNS:
            reason = Reason.DNS_FAILED
        case TransportError.NXDOMAIN:
            reason = Reason.DNS_NOT_FOUND
        case TransportError.TIMEOUT:
            reason = Reason.TIMEOUT
        case TransportError.RESET:
            reason = Reason.CONNECTION_RESET
        case TransportError.PROTOCOL:
            reason = Reason.PROTOCOL_ERROR
        case TransportError.ADDRESS_REFUSED:
            return Verdict(Outcome.PERMANENT, Reason.ADDRESS_REFUSED, detail=detail)
        case TransportError.WORKER:
            return Verdict(Outcome.RETRY, Reason.WORKER_ERROR, detail=detail)
        case _:
            assert_never(error)
    return Verdict(Outcome.RETRY, reason, detail=detail, counts_against_host=True)


def _verdict(
    answer: Answer,
    outcome: Outcome,
    reason: Reason,
    *,
    detail: str = "",
    retry_after_ms: int | None = None,
    counts_against_host: bool = False,
    slows_host: bool = False,
    inbox_gone: bool = False,
    knock: bool = False,
    location: str = "",
) -> Verdict:
    return Verdict(
        outcome,
        reason,
        answer.status,
        snippet(answer.body_head),
        detail,
        retry_after_ms,
        counts_against_host,
        slows_host,
        inbox_gone,
        knock,
        location,
        answer.accept_signature if knock else "",
    )


def _is_html_page(answer: Answer) -> bool:
    """A whole page, as parked domains give. The content type alone proves nothing: frameworks label
    an empty 202 as text/html too."""
    if not answer.body_head or "json" in answer.content_type.lower():
        return False
    return _HTML_PAGE.search(answer.body_head[:SNIPPET_BYTES]) is not None


def _retry_after(answer: Answer, now_ms: int) -> int | None:
    """Milliseconds from now (RFC 9110 section 10.2.3), at most LONGEST_RETRY_AFTER_MS; None if the
    header is absent or malformed. A date is read against the remote's own Date, if it sent one."""
    text = answer.retry_after.strip()
    if not text:
        return None
    if _SECONDS.fullmatch(text):
        return min(int(text) * 1000, LONGEST_RETRY_AFTER_MS)
    then = _http_date_ms(text)
    if then is None:
        return None
    now = _http_date_ms(answer.date)
    return min(max(0, then - (now_ms if now is None else now)), LONGEST_RETRY_AFTER_MS)


def _http_date_ms(text: str) -> int | None:
    if not text or len(text) > 64:
        return None
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1000)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def snippet(body_head: bytes) -> str:
    """The first SNIPPET_BYTES of a body as text: safe to log, to store and to show."""
    # a replacement character takes more bytes than what it replaces
    return _fitting(clean(body_head[:SNIPPET_BYTES].decode("utf-8", "replace"), SNIPPET_BYTES), SNIPPET_BYTES)


def _fitting(text: str, size: int) -> str:
    """As much of it as fits in `size` bytes of UTF-8."""
    encoded = text.encode()
    return text if len(encoded) <= size else encoded[:size].decode("utf-8", "ignore")


def clean(text: str, limit: int) -> str:
    """At most `limit` characters, none of which controls a terminal or a log: white space becomes
    a space, any other character that does not print becomes U+FFFD."""
    text = text[:limit]
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)
