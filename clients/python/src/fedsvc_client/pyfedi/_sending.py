"""Sending as PieFed's code does it: one activity to one inbox, or to the inboxes of all instances that
follow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from typing import Any

from fedsvc_client._arguments import LONGEST_REQUEST_ID, named, seconds, whole_text
from fedsvc_client._configuration import shared_client
from fedsvc_client._exceptions import FedsvcError, FieldViolation, InvalidRequest
from fedsvc_client._types import FanOut, ItemError, RejectedInbox
from fedsvc_client.pyfedi._context import default_context

log = logging.getLogger("fedsvc_client.pyfedi")

#: most inboxes in one call (FEDSVC_MAX_FAN_OUT of the server)
LARGEST_FAN_OUT = 50_000
_ACTIVITY_JSON = "application/activity+json"


@dataclass(frozen=True)
class Refusal:
    """An activity that the server did not take, and never will as it is."""

    uri: str
    body: Mapping[str, Any] | None
    #: says what is wrong; never holds the key
    error: FedsvcError


def _log(refusal: Refusal) -> None:
    id = refusal.body.get("id") if isinstance(refusal.body, Mapping) else None
    # Quoted: it may have what the log cannot write, or lines.
    log.error("not sent: %r to %r: %s", id, refusal.uri, refusal.error)


_tell: Callable[[Refusal], None] = _log


def on_refusal(tell: Callable[[Refusal], None] | None) -> None:
    """What to do, in this process, with an activity that the server refuses: such as to write it to PieFed's
    ActivityPubLog, or to raise `refusal.error`. None: log it, as it is without this."""
    global _tell
    _tell = tell or _log


def send_post_request(
    uri: str,
    body: Mapping[str, Any] | None,
    private_key: str,
    key_id: str,
    content_type: str = _ACTIVITY_JSON,
    method: str = "post",
    timeout: float = 10,
    retries: int = 0,
    new_task: bool = True,
) -> bool:
    """Have `body` delivered to the inbox `uri`, signed with `private_key`. Returns True: fedsvc has it.

    The parameters are PieFed's. A `body` without `@context` gets PieFed's (the dict of the caller stays as it
    is). `timeout`: seconds for the call of fedsvc, not for the delivery. `retries` means nothing here, since
    the server counts attempts itself. Nor does `new_task`: the call takes milliseconds, and what PieFed does
    at once with `new_task=False` is queued as well, since a task that waits for a remote inbox is what fedsvc
    is there to end.

    **Failures.** An inbox that does not answer, or refuses, is not the caller's matter, as it is not in
    PieFed: see `watch`. Neither is an activity that fedsvc refuses (no inbox, no id, a bad key): it is told
    to `on_refusal`, which logs it, and True is returned, as PieFed returns True for what its task will fail
    to send. Raised is what PieFed's callers know from a broker that is away, and what nobody should miss:
    Unavailable if fedsvc cannot be reached within `timeout` seconds, ResourceExhausted if it takes nothing
    more for now, PermissionDenied for a bad token and ConfigurationError for missing settings. In Celery let
    the task be retried (`autoretry_for=(FedsvcError,)`): an activity that fedsvc has already is not sent to
    the same inbox again. A `method` or `timeout` that cannot be is a ValueError."""
    if str(method).lower() != "post":
        raise ValueError(f"method {method!r}: activities are delivered by POST")
    _check_timeout(timeout)
    try:
        if not uri:
            raise InvalidRequest("there is no inbox to send to")
        shared_client().queue_activity(
            complete(body),
            uri,
            private_key=private_key,
            key_id=key_id,
            content_type="" if content_type == _ACTIVITY_JSON else content_type,
            timeout=timeout,
        )
    except InvalidRequest as error:
        _tell(Refusal(uri, body, error))
    return True


def fan_out(
    body: Mapping[str, Any],
    inboxes: Iterable[Any],
    private_key: str,
    key_id: str,
    *,
    timeout: float | None = None,
    request_id: str | None = None,
) -> FanOut:
    """Have one activity delivered to many inboxes: for an announce, instead of a loop over instances.

    `inboxes`: URLs, or whatever has them in its attribute `inbox`, as PieFed's Instance has. Those that are
    empty are left out, and one that comes twice is sent to once. fedsvc stores the body once and takes
    thousands of inboxes in one call; instances that are down need not be left out, they hold nobody up.

    Returns how many deliveries were accepted, how many are duplicates, and which inboxes were refused, each
    with its index in `inboxes`; these are told to `on_refusal` too. Raises as `send_post_request` does, and
    InvalidRequest if `inboxes`, `timeout` or `request_id` are none; to repeat a call that failed is safe.
    """
    _check_timeout(timeout)
    name = named(request_id)
    places = _places(inboxes)
    urls = iter(places)
    activity = complete(body)
    accepted, duplicates, index, id = 0, 0, 0, str(body.get("id") or "")
    rejected: list[RejectedInbox] = []
    while part := list(islice(urls, LARGEST_FAN_OUT)):
        try:
            told = shared_client().fan_out(
                activity, part, private_key=private_key, key_id=key_id,
                request_id=_part_name(name, index), timeout=timeout,
            )  # fmt: skip
        except InvalidRequest as error:
            _tell(Refusal(part[0], body, error))
            return FanOut(id, accepted, duplicates, rejected)
        except FedsvcError as error:
            error.request_id = name  # of the whole, which is what can be repeated
            raise
        for refused in told.rejected:
            at = places[part[refused.index]]
            why = replace(refused.error, field=f"inboxes[{at}]")
            rejected.append(replace(refused, index=at, error=why))
            _tell(Refusal(refused.inbox, body, _as_of_a_call(why)))
        accepted, duplicates = accepted + told.accepted, duplicates + told.duplicates
        index += 1
    return FanOut(id, accepted, duplicates, rejected)


def complete(body: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """`body` with a context. Raises InvalidRequest if there is nothing to send."""
    if body is None:
        raise InvalidRequest("there is no activity to send")
    if not isinstance(body, Mapping):
        raise InvalidRequest(f"the activity is no dict but {type(body).__name__}")
    return body if "@context" in body else {"@context": default_context(), **body}


def _check_timeout(timeout: float | None) -> None:
    """It is the caller's mistake, whatever the activity is: as a refusal, each would be lost for it."""
    if timeout is not None:
        seconds("timeout", timeout)


def _part_name(name: str, index: int) -> str:
    """What a call of a fan-out in several is repeated under."""
    part = f"{name}.{index}" if index else name
    return part if not index or len(part) <= LONGEST_REQUEST_ID else sha256(part.encode()).hexdigest()


def _as_of_a_call(error: ItemError) -> InvalidRequest:
    """As it is raised for a call of which it is all that is wrong."""
    violation = FieldViolation(error.field, error.message)
    return InvalidRequest(f"{error.field}: {error.message}", reason=error.reason, violations=[violation])


def _places(inboxes: Iterable[Any]) -> dict[str, int]:
    """Their URLs, each with the first index that it has. Raises InvalidRequest for what has none."""
    if isinstance(inboxes, (str, bytes)) or not isinstance(inboxes, Iterable):
        raise InvalidRequest(f"inboxes must be several, not {type(inboxes).__name__}")
    found: dict[str, int] = {}
    for index, place in enumerate(inboxes):
        url = place if place is None or isinstance(place, str) else getattr(place, "inbox", place)
        if url:
            found.setdefault(whole_text(f"inboxes[{index}]", url), index)
    return found
