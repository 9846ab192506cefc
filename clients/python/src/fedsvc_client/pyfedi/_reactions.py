"""What PieFed does with the answers of inboxes today, as callbacks that are told of them by fedsvc.

PieFed's task looks at each answer as it comes: 410 or 418 makes an instance gone for ever,
`community_has_no_followers` in the body removes members of a community, `person_is_banned_from_site` notes a
ban, and failures make an instance dormant. Here a consumer of outcomes, one process of its own, tells the
same to the functions of `Reactions`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedsvc_client._configuration import Configuration
from fedsvc_client._exceptions import NotFound
from fedsvc_client._operator_types import HostState
from fedsvc_client._sync import FedsvcClient
from fedsvc_client._types import Delivery, DeliveryState, EventType, OutcomeEvent
from fedsvc_client.outcomes import CursorStore, OutcomeConsumer

log = logging.getLogger("fedsvc_client.pyfedi")

NO_FOLLOWERS = "community_has_no_followers"
BANNED = "person_is_banned_from_site"


@dataclass(frozen=True)
class Reactions:
    """Functions of the application; those that are None are not called. Each may be called again with the
    same after a crash, and must do no harm then: set a flag, upsert a row. `domain` is a host name in lower
    case."""

    #: (domain): it has failed for longer than FEDSVC_HOST_DOWN_AFTER (a day). PieFed: `instance.dormant =
    #: True`. There is no need to stop sending: what is sent waits in the host's lane, for two days at most.
    instance_dormant: Callable[[str], None] | None = None
    #: (domain): its shared inbox has said 410 for a day, and no inbox there has taken anything meanwhile.
    #: PieFed: `instance.gone_forever = True` and `dormant = True`. (PieFed does so at the first 410, of
    #: whichever inbox.)
    instance_gone_forever: Callable[[str], None] | None = None
    #: (domain): it takes deliveries again. PieFed: dormant and gone_forever off, `failures = 0`.
    instance_back: Callable[[str], None] | None = None
    #: (inbox URL, domain): this inbox said 410; others there may work.
    inbox_gone: Callable[[str, str], None] | None = None
    #: (body, domain): an activity was refused with 400 and `person_is_banned_from_site`. `body` is the
    #: answer's JSON as PieFed's `process_banned_message` takes it; its `message` is the actor who is banned
    #: there. It has `error` and `message`, a text, always; an answer that names nobody is not told.
    person_banned: Callable[[dict[str, Any], str], None] | None = None
    #: (actor, domain): a remote community said that nobody there follows the community `actor`. PieFed:
    #: remove that instance's members from it.
    community_without_followers: Callable[[str, str], None] | None = None
    #: (delivery): it was given up, for whatever reason; for PieFed's ActivityPubLog.
    failed: Callable[[Delivery], None] | None = None
    #: (delivery): it has arrived. Costs a call for each delivery: without it those are not even sent to us.
    delivered: Callable[[Delivery], None] | None = None


def watch(
    reactions: Reactions, cursor: CursorStore, *, client: FedsvcClient | None = None, **more: Any
) -> OutcomeConsumer:
    """A consumer that tells `reactions` of what happens; `run()` it in a process or thread of its own.

    `client` is the consumer's own; None makes one of what is configured. `more`: as OutcomeConsumer takes it.
    """
    own = client if client is not None else Configuration.read().connect()
    states = [DeliveryState.DEAD] + ([DeliveryState.DELIVERED] if reactions.delivered else [])
    types = (EventType.OUTCOME, EventType.HOST_DOWN, EventType.HOST_UP, EventType.INBOX_GONE)
    return OutcomeConsumer(
        own, lambda event: react(reactions, event, own), cursor, event_types=types, states=states, **more
    )


def react(reactions: Reactions, event: OutcomeEvent, client: FedsvcClient) -> None:
    """Tell `reactions` of one event. `client` is asked whether a host that is down is gone.

    Raises what a callback raises, and FedsvcError.
    """
    domain = event.host.lower()
    if event.type is EventType.HOST_UP:
        _call(reactions.instance_back, domain)
    elif event.type is EventType.INBOX_GONE:
        _call(reactions.inbox_gone, event.inbox, domain)
    elif event.type is EventType.HOST_DOWN:
        gone = _is_gone(client, domain)
        _call(reactions.instance_gone_forever if gone else reactions.instance_dormant, domain)
    elif event.type is EventType.OUTCOME and event.delivery is not None:
        _outcome(reactions, event.delivery, domain)


def _outcome(reactions: Reactions, delivery: Delivery, domain: str) -> None:
    if delivery.state is DeliveryState.DELIVERED:
        _call(reactions.delivered, delivery)
        return
    if delivery.state is not DeliveryState.DEAD:
        return
    answer = delivery.response_snippet
    # A page of HTML that happens to hold the words says nothing of the kind.
    if "doctype html" not in answer.lower():
        if NO_FOLLOWERS in answer:
            _call(reactions.community_without_followers, delivery.actor, domain)
        elif delivery.http_status == 400 and BANNED in answer:
            body = _json(answer)
            if isinstance(body.get("message"), str) and body["message"].strip():
                _call(reactions.person_banned, {"error": BANNED, **body}, domain)
            else:
                log.warning("%s refuses a banned person that it does not name", domain)
    _call(reactions.failed, delivery)


def _is_gone(client: FedsvcClient, domain: str) -> bool:
    try:
        host, _ = client.get_host(domain)
    except NotFound:  # so long ago that the server has forgotten it
        return False
    return host.state is HostState.GONE


def _json(text: str) -> dict[str, Any]:
    """Of what others wrote; empty if it is no object. It may be cut off after 1 KiB, and have words of
    fedsvc's own behind it."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return {}
    return dict(found) if isinstance(found, Mapping) else {}


def _call(callback: Callable[..., None] | None, *told: Any) -> None:
    if callback is not None:
        callback(*told)
