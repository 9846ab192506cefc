"""One attempt to deliver: sign, POST, follow redirects, and say what came of it.

    sign (in a process) ──▶ POST ──▶ answer ──▶ verdict
            ▲                          │
            ├── 401, 403: another form of signature, see `domain/knock.py`
            └── 307, 308: at most 3

Every attempt is signed afresh, since receivers take a Date for minutes only. One deadline covers all
of it. How many go to one host at a time is decided before, for all workers together: see `lua/admit.lua`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import urldefrag, urljoin, urlsplit

import structlog

from fedsvc.config import Settings
from fedsvc.domain import message_signatures
from fedsvc.domain.classify import (
    DETAIL_CHARACTERS,
    Answer,
    Outcome,
    TransportError,
    Verdict,
    classify,
    clean,
    sized,
)
from fedsvc.domain.delivery import Attempt, Priority, Reason
from fedsvc.domain.errors import InvalidInbox
from fedsvc.domain.inbox import parse_inbox
from fedsvc.domain.keys import PrivateKey
from fedsvc.domain.knock import Dialect, Form, first_form, next_form
from fedsvc.domain.message import Message
from fedsvc.domain.signatures import MessageForm, Target, imf_fixdate
from fedsvc.worker.dialer import Origin
from fedsvc.worker.signer import Signer
from fedsvc.worker.transport import Transport

MAX_REDIRECTS: Final = 3
_NO_INBOX: Final = frozenset({Reason.GONE, Reason.NOT_FOUND})

log = structlog.get_logger(__name__)


class AttemptResult(NamedTuple):
    """What came of one attempt. The verdict's outcome is never FOLLOW."""

    verdict: Verdict
    started_ms: int  # milliseconds since the epoch
    latency_ms: int
    #: where the last request went; another URL than the inbox's if it redirected
    url: str
    #: how the host wants to be signed to, if it is not what was remembered
    learnt: Dialect = Dialect.UNKNOWN

    @property
    def attempt(self) -> Attempt:
        return Attempt(self.started_ms, self.latency_ms, self.verdict.status, self.verdict.reason)


@dataclass(slots=True)
class _Job:
    """One attempt under way."""

    message: Message
    key: PrivateKey
    inbox: str
    url: str  # the inbox, or where it redirects to
    remembered: Dialect
    urgent: bool
    sent: Callable[[], None]
    learnt: Dialect = Dialect.UNKNOWN


class Deliverer:
    """Delivers over kept-alive connections. Belongs to one event loop; `start` before, `close` after."""

    def __init__(self, settings: Settings, signer: Signer, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since the epoch, for Date and for Retry-After dates."""
        self._settings = settings
        self._signer = signer
        self._clock = clock
        self._transport = Transport(settings)

    async def start(self) -> None:
        """Raises OSError (ssl.SSLError among them) if the CA file cannot be used."""
        self._loop = asyncio.get_running_loop()
        await self._transport.open()

    async def close(self) -> None:
        """Drops all connections. Deliveries under way must be awaited or cancelled before."""
        await self._transport.close()

    async def deliver(
        self,
        message: Message,
        inbox_url: str,
        key: PrivateKey,
        priority: Priority = Priority.NORMAL,
        dialect: Dialect = Dialect.UNKNOWN,
        sent: Callable[[], None] = lambda: None,
    ) -> AttemptResult:
        """Try once. `dialect`: what is remembered of the host; `sent` is called when only the host has to do
        something yet. Never raises for what a network, a remote or a defect does; cancellation does."""
        try:
            _destination(inbox_url)
        except InvalidInbox as error:
            return self._untried(inbox_url, TransportError.ADDRESS_REFUSED, error.problem)
        started, begun = self._clock(), time.monotonic()
        job = _Job(message, key, inbox_url, inbox_url, dialect, priority is Priority.URGENT, sent)
        try:
            verdict = sized(await self._try(job), len(message.body))
        except Exception as error:
            # a defect of ours: it must end neither the worker nor the other deliveries
            log.error("attempt_failed", inbox=inbox_url, activity=message.activity_id, exc_info=error)
            verdict = classify(Answer(error=TransportError.WORKER, detail=type(error).__name__), 0)
        latency_ms = round((time.monotonic() - begun) * 1000)
        return AttemptResult(verdict, int(started * 1000), latency_ms, job.url, job.learnt)

    def _untried(self, url: str, error: TransportError, detail: str) -> AttemptResult:
        return AttemptResult(
            classify(Answer(error=error, detail=detail), 0), int(self._clock() * 1000), 0, url
        )

    async def _try(self, job: _Job) -> Verdict:
        ends = self._loop.time() + self._settings.delivery_timeout
        try:
            for _ in range(MAX_REDIRECTS):
                verdict = await self._knock(job, ends)
                if verdict.outcome is not Outcome.FOLLOW:
                    return verdict
                target = self._redirect_target(job.url, verdict)
                if isinstance(target, Verdict):
                    return target
                job.url = target
            return _unfollowed(await self._knock(job, ends))
        except TimeoutError:
            timeout_s = self._settings.delivery_timeout
            late = Answer(error=TransportError.TIMEOUT, detail=f"no answer within {timeout_s:g} s")
            return classify(late, 0)

    async def _knock(self, job: _Job, ends: float) -> Verdict:
        """One URL, in as many forms as it takes. If all are refused, the first refusal counts: the others
        may only say that the form is not known there. That an inbox is not there is no matter of forms."""
        at_home = job.url == job.inbox or _destination(job.url).origin == _destination(job.inbox).origin
        form = first_form(job.remembered if at_home else Dialect.UNKNOWN)
        tried: list[Form] = []
        refusal: Verdict | None = None
        while True:
            answer = await self._send(job, form, ends)
            verdict = classify(answer, int(self._clock() * 1000))
            if not verdict.knock and (refusal is None or not _says_little(verdict, form)):
                if verdict.outcome is Outcome.DELIVERED and tried and at_home:
                    job.learnt = form.dialect
                return verdict
            refusal = refusal or verdict
            tried.append(form)
            following = next_form(
                tried,
                accept_signature=verdict.accept_signature,
                key_algorithm=job.key.algorithm,
                has_query="?" in _destination(job.url).target.path,
            )
            if following is None:
                return refusal
            form = following

    async def _send(self, job: _Job, form: Form, ends: float) -> Answer:
        destination = _destination(job.url)
        if destination.origin.scheme != "https" and not self._settings.allow_http:
            return Answer(error=TransportError.ADDRESS_REFUSED, detail="not an https URL")
        headers = await self._signed(destination, job, form)
        if self._loop.time() >= ends:  # as when what signs hangs: the host was not even asked
            return Answer(error=TransportError.WORKER, detail="no signature in time")
        # On a kept connection the request is written before anybody else gets a turn.
        job.sent()
        return await self._transport.post(
            destination.origin, destination.target.path, headers, job.message.body, ends
        )

    async def _signed(self, destination: _Destination, job: _Job, form: Form) -> dict[str, str]:
        message, key = job.message, job.key
        epoch_seconds = int(self._clock())
        date = imf_fixdate(epoch_seconds)
        if form.dialect in (Dialect.CAVAGE, Dialect.CAVAGE_PATH):
            target = destination.target
            if form.dialect is Dialect.CAVAGE_PATH:
                target = target._replace(path=target.path.partition("?")[0])
            prepared = _form(message.digest, message.key_id, message.content_type, key.algorithm)
            signature = await self._signer.sign(key, prepared.base(target, date), urgent=job.urgent)
            return prepared.headers(target, date, signature)
        unsigned = message_signatures.request(
            form.coverage, destination.origin.scheme, destination.target,
            digest=message.digest, length=len(message.body), content_type=message.content_type,
            key_id=message.key_id, epoch_seconds=epoch_seconds, date=date,
        )  # fmt: skip
        return unsigned.with_signature(await self._signer.sign(key, unsigned.base, urgent=job.urgent))

    def _redirect_target(self, url: str, verdict: Verdict) -> str | Verdict:
        """The next URL, or the verdict if it is nothing that we deliver to."""
        try:
            target, _ = urldefrag(urljoin(url, verdict.location))
            return parse_inbox(target, allow_http=self._settings.allow_http).url
        except (InvalidInbox, ValueError) as error:
            problem = error.problem if isinstance(error, InvalidInbox) else str(error)
            return Verdict(
                Outcome.PERMANENT,
                Reason.REDIRECTED,
                verdict.status,
                detail=clean(f"{verdict.detail}: {problem}", DETAIL_CHARACTERS),
            )


def _says_little(verdict: Verdict, form: Form) -> bool:
    """Whether it may only mean that this form, tried after the refusal of another, is not known there: some
    servers fail over a Signature that is not draft-cavage's."""
    if verdict.reason is Reason.SERVER_ERROR:
        return form.dialect in (Dialect.RFC9421, Dialect.RFC9421_FULL)
    return verdict.outcome is Outcome.PERMANENT and verdict.reason not in _NO_INBOX


def _unfollowed(verdict: Verdict) -> Verdict:
    """Of the last hop that is allowed."""
    if verdict.outcome is not Outcome.FOLLOW:
        return verdict
    detail = clean(f"more than {MAX_REDIRECTS}, {verdict.detail}", DETAIL_CHARACTERS)
    return replace(verdict, outcome=Outcome.PERMANENT, reason=Reason.TOO_MANY_REDIRECTS, detail=detail)


class _Destination(NamedTuple):
    origin: Origin
    target: Target


@lru_cache(maxsize=4096)
def _destination(url: str) -> _Destination:
    """Raises InvalidInbox."""
    inbox = parse_inbox(url, allow_http=True)
    parts = urlsplit(inbox.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return _Destination(Origin(parts.scheme, inbox.host, port), Target.of(inbox.url))


_form = lru_cache(maxsize=256)(MessageForm.of)
