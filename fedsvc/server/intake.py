"""From a request to what the queue takes: validates, and computes once what many deliveries share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import structlog

from fedsvc.config import Settings
from fedsvc.domain.activity import parse_activity
from fedsvc.domain.delivery import Priority
from fedsvc.domain.inbox import origin_of, parse_inbox
from fedsvc.domain.integrity import with_proof
from fedsvc.domain.keys import PrivateKey, PrivateKeyCache, belongs, load_private_key, registered_name
from fedsvc.domain.message import CONTENT_TYPE, Message
from fedsvc.domain.relations import Relation
from fedsvc.errors import HandlerFailed, InvalidActivity, InvalidInbox, InvalidInput, InvalidKey
from fedsvc.handlers.registry import Registry, Rules
from fedsvc.queue.key_registry import KeyRegistry
from fedsvc.queue.keystore import KeyStore
from fedsvc.queue.producer import Place, Producer, Terms
from fedsvc.server.caller import caller
from fedsvc.server.fields import plain_text, priority, request_name, time_ms
from fedsvc.server.limits import Limits
from fedsvc.server.metrics import MISMATCHES
from fedsvc.tracing import annotate, carried

log = structlog.get_logger(__name__)

#: characters of an ordering or supersede key
_MAX_KEY: Final = 512
#: inboxes validated before others get a turn
_SLICE: Final = 2000
#: inboxes whose normal form is remembered, if they have no more characters than inboxes have
_PLACES: Final = 100_000
_ORDINARY: Final = 256
#: key ids with actors that were warned of and are not again, about
_MOST_WARNED: Final = 1000
#: bytes of an activity whose proof is made at once; that of a larger one takes too long for the event loop
_QUICKLY_PROVEN: Final = 16_384
#: keys that are checked, and large proofs that are made, at the same time, at most
_CHECKS: Final = 2
#: `not_before` further away than this is a mistake: 366 days in milliseconds
_FURTHEST_MS: Final = 366 * 86_400_000


@dataclass(slots=True)  # not frozen, as a message is not
class Submission:
    """A valid activity with its key and terms, to be sent somewhere."""

    message: Message
    #: what the call brought; None if it named a registered one
    key: PrivateKey | None
    terms: Terms
    #: it named a registered key that is none, or is to be deleted
    keyless: InvalidKey | None = None

    @property
    def in_s(self) -> float:
        """Seconds until it may be sent."""
        return max(0.0, self.terms.not_before_ms / 1000 - time.time()) if self.terms.not_before_ms else 0.0

    @property
    def late(self) -> bool:
        """It must not be tried any more."""
        return 0 < self.terms.expire_ms <= time.time() * 1000

    @property
    def doubtful(self) -> bool:
        """It can only be taken if it repeats a call: see `check_repeated`."""
        return self.keyless is not None or self.late


class _Head(NamedTuple):
    id: str
    type: str
    actor: str


class _Key(NamedTuple):
    """What a call is to be signed with."""

    #: what it brought, if it did
    brought: PrivateKey | None
    #: in the key store
    name: str
    #: it named a registered one that is none, or is to be deleted
    problem: InvalidKey | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """An inbox of a fan-out that cannot be accepted."""

    index: int
    inbox: str
    error: InvalidInput


class Intake:
    def __init__(
        self,
        settings: Settings,
        producer: Producer,
        handlers: Registry,
        store: KeyStore,
        registry: KeyRegistry,
        limits: Limits,
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._handlers = handlers
        self._store = store
        self._registry = registry
        self._limits = limits
        self._keys = PrivateKeyCache(settings.key_cache_size)
        self._checking = asyncio.Semaphore(_CHECKS)
        self._places: dict[str, Place] = {}
        self._warned: set[tuple[str, str]] = set()

    async def submission(self, request: Any, request_id: str = "") -> Submission:
        """Of a QueueActivityRequest or FanOutActivityRequest, which has this request id if it brings none
        of its own. One that is `doubtful` is to be checked. Raises InvalidInput, HandlerFailed,
        PermissionDenied, and QueueUnavailable if a registered key cannot be looked up."""
        known = caller()
        # Each look at a field of a request copies it, or makes an object that stands for it.
        body, options, given = request.activity, request.options, request.signing_key
        key_id, supersede_key = given.key_id, options.supersede_key
        most = self._limits.max_bytes(known)
        head, rules = self._read(body, most)
        relation = rules.relation.asked(
            ordering_key=plain_text("options.ordering_key", options.ordering_key, _MAX_KEY),
            supersede_key=plain_text("options.supersede_key", supersede_key, _MAX_KEY),
        )
        request_id = request_name(request.request_id) or request_id
        terms = self._terms(options, request_id, rules.priority, relation)
        if not key_id:
            raise InvalidKey("signing_key.key_id", "is required")
        origin = origin_of(key_id)
        known.check_origin("signing_key.key_id", origin)
        self._limits.check_size(origin, len(body))
        if not belongs(key_id, head.actor):
            self._warn(key_id, head.actor)
        signing = key, key_name, keyless = await self._key(given)
        if keyless is not None and not request_id:
            raise keyless  # a call without a name repeats none
        source = ""
        if options.integrity_proof:
            body, source = await self._proven(request, signing, most)
            self._limits.check_size(origin, len(body))
        elif options.HasField("proof_key"):
            raise InvalidInput("options.proof_key", "is of no use without options.integrity_proof")
        message = Message(
            body=body,
            activity_id=head.id,
            activity_type=head.type,
            actor=head.actor,
            key_id=key_id,
            key_name=key_name,
            origin=origin,
            content_type=self._content_type(options.content_type),
            ordering_key=relation.ordering_key,
            supersede_key=supersede_key,
            request_id=terms.request_id,
            trace=carried(),
            digest=Message.digest_of(body),
            source=source,
        )
        annotate(activity=head.id, activity_type=head.type, origin=origin)
        return Submission(message, key, terms, keyless)

    async def check_repeated(self, submission: Submission, places: Sequence[Place], *, fan_out: bool) -> None:
        """What is late or has no key is refused, unless it repeats a call that was accepted: that gets the
        first answer. What broke half-way may be finished: it expires at once if it is late, and is signed if
        its key is still there. Raises InvalidInput, QueueUnavailable, RequestIdReused."""
        parts = await self._producer.known(submission.message, places, submission.terms, fan_out=fan_out)
        message, keyless = submission.message, submission.keyless
        if keyless is not None and not await self._registry.finishes(message.key_id, parts):
            raise keyless
        if submission.late and not any(parts):
            raise InvalidInput("options.expire_time", "has passed already")

    def _warn(self, key_id: str, actor: str) -> None:
        """Lemmy verifies with the key of the activity's actor, whatever key id the signature has."""
        MISMATCHES.inc()
        if (key_id, actor) not in self._warned:
            if len(self._warned) >= _MOST_WARNED:
                self._warned.clear()
            self._warned.add((key_id, actor))
            log.warning("key_of_another_actor", key_id=key_id, actor=actor)

    async def scheduled(self, body: bytes, key_id: str) -> str:
        """Check what a schedule would send with a registered key. Returns the activity's id. Raises
        InvalidInput, HandlerFailed, PermissionDenied, QueueUnavailable."""
        field = "schedule.fan_out.key_id"
        if not key_id:
            raise InvalidKey(field, "is required")
        origin = origin_of(key_id, field=field)
        caller().check_origin(field, origin)
        try:
            head, _ = self._read(body, self._limits.max_bytes(caller()))
            self._limits.check_size(origin, len(body))
        except InvalidInput as error:
            raise type(error)(f"schedule.fan_out.{error.field}", error.problem) from None
        if await self._registry.usable(key_id) is None:
            raise InvalidKey(field, "no key of this id is registered")
        return head.id

    def _read(self, body: bytes, max_bytes: int) -> tuple[_Head, Rules]:
        """What is kept of an activity; the parsed document, which is many times as large, is not."""
        activity = parse_activity(body, max_bytes=max_bytes)
        try:
            rules = self._handlers.rules(activity)
        except HandlerFailed as error:
            log.error(
                "handler_failed", handler=error.handler, type=error.activity_type, exc_info=error.__cause__
            )
            raise
        return _Head(activity.id, activity.type, activity.actor), rules

    async def _proven(self, request: Any, chosen: _Key, most: int) -> tuple[bytes, str]:
        """The activity with its proof, by this key unless the call names another for it, and what names it: a
        proof tells its time, so that the same call, come again, would make another one. Without the key
        nobody can tell whether it is the same. `most`: bytes that it may have."""
        method, options = request.signing_key.key_id, request.options
        if options.HasField("proof_key"):
            method = options.proof_key.key_id
            origin_of(method, field="options.proof_key.key_id")
            if origin_of(method) != origin_of(request.signing_key.key_id):
                raise InvalidKey("options.proof_key.key_id", "is of another host than signing_key.key_id")
            chosen = await self._key(options.proof_key, "options.proof_key")
        if chosen.problem is not None:
            raise chosen.problem
        key = chosen.brought or await self._store.fetch(chosen.name)
        arguments = (request.activity, key, method, int(time.time()))
        if len(request.activity) <= _QUICKLY_PROVEN:
            body = with_proof(*arguments)
        else:
            async with self._checking:
                body = await asyncio.to_thread(with_proof, *arguments)
        if len(body) > most:
            raise InvalidActivity("activity", f"has {len(body)} bytes with its proof; {most} are allowed")
        return body, f"{Message.digest_of(request.activity)} {method} {key.fingerprint}"

    def place(self, inbox: str) -> Place:
        """Raises InvalidInbox."""
        known = self._places.get(inbox)
        if known is not None:
            return known
        place = self._producer.place(parse_inbox(inbox, allow_http=self._settings.allow_http))
        if len(inbox) <= _ORDINARY:
            if len(self._places) >= _PLACES:
                self._places.clear()
            self._places[inbox] = place
        return place

    async def places(self, inboxes: Sequence[str]) -> tuple[list[Place], list[Rejected], int]:
        """The distinct inboxes of a fan-out, those that cannot be accepted, and how many came twice."""
        places: dict[str, Place] = {}
        rejected: list[Rejected] = []
        for start in range(0, len(inboxes), _SLICE):
            if start:
                await asyncio.sleep(0)  # others are waiting too
            for index, inbox in enumerate(inboxes[start : start + _SLICE], start):
                try:
                    place = self._places.get(inbox) or self.place(inbox)
                except InvalidInbox as error:
                    rejected.append(Rejected(index, inbox, InvalidInbox(f"inboxes[{index}]", error.problem)))
                    continue
                places[place.url] = place
        return list(places.values()), rejected, len(inboxes) - len(places) - len(rejected)

    async def _key(self, given: Any, field: str = "signing_key") -> _Key:
        """Of a SigningKey."""
        pem, problem = given.private_key_pem, None
        if pem:
            key = await self.checked(pem)
            return _Key(key, key.fingerprint, None)
        if await self._registry.usable(given.key_id) is None:
            problem = InvalidKey(
                f"{field}.private_key_pem", "is required: no key of this key_id is registered"
            )
        return _Key(None, registered_name(given.key_id), problem)

    async def checked(self, pem: str) -> PrivateKey:
        """A private key, valid and known from then on. Raises InvalidKey."""
        known = self._keys.peek(pem)
        if known is not None:
            return known
        async with self._checking:
            known = self._keys.peek(pem)  # somebody else's call may have brought it meanwhile
            if known is None:
                # Some 30 ms of arithmetic for RSA, ten times that for the longest.
                known = await asyncio.to_thread(load_private_key, pem)
                self._keys.add(pem, known)
        return known

    def _terms(self, options: Any, request_id: str, by_type: Priority, relation: Relation) -> Terms:
        not_before_ms = time_ms(options, "not_before", "options.not_before")
        expire_ms = time_ms(options, "expire_time", "options.expire_time")
        if not_before_ms > time.time() * 1000 + _FURTHEST_MS:
            raise InvalidInput("options.not_before", "is more than a year away")
        if expire_ms and expire_ms <= not_before_ms:
            raise InvalidInput("options.expire_time", "is not later than options.not_before")
        return Terms(
            priority=priority("options.priority", options.priority) or by_type,
            not_before_ms=not_before_ms,
            expire_ms=expire_ms,
            request_id=request_id,
            allow_duplicate=options.allow_duplicate,
            shared_inbox=options.shared_inbox,
            relation=relation,
        )

    @staticmethod
    def _content_type(text: str) -> str:
        if not text:
            return CONTENT_TYPE
        # of a header, white space at an end is not taken for part of the value that a signature covers
        bare = text.isascii() and text.isprintable() and text == text.strip()
        if len(text) > 256 or not bare or "/" not in text:
            raise InvalidInput("options.content_type", "is not a media type")
        return text
