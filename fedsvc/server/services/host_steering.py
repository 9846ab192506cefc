"""The part of OperationsService that shows and steers hosts."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from fedsvc.archive.archive import Archive
from fedsvc.domain.delivery import Attempt, DeliveryId
from fedsvc.errors import ArchiveUnavailable, InvalidInput, NotFound
from fedsvc.queue.host_list import HostList, HostOrder, Position
from fedsvc.queue.hosts import FOR_EVER, Circuit, HostAttempt, HostPolicy, Hosts
from fedsvc.queue.reader import Reader
from fedsvc.server import convert, pages
from fedsvc.server.audit import Audit
from fedsvc.server.caller import allowed_origins
from fedsvc.server.errors import rpc
from fedsvc.server.fields import duration_ms, host_name, plain_text
from fedsvc.v1 import operations_service_pb2 as pb

#: characters
_MAX_REASON: Final = 512
_LONGEST_NAME: Final = 255
#: attempts that GetHost shows
_RECENT: Final = 20


class HostSteering:
    def __init__(
        self, hosts: Hosts, host_list: HostList, reader: Reader, archive: Archive, audit: Audit
    ) -> None:
        self._hosts = hosts
        self._list = host_list
        self._reader = reader
        self._archive = archive
        self._audit = audit

    @rpc
    async def ListHosts(self, request: pb.ListHostsRequest, context: Any) -> pb.ListHostsResponse:
        if len(request.name_contains) > _LONGEST_NAME:
            raise InvalidInput("name_contains", f"is longer than {_LONGEST_NAME} characters")
        states = frozenset(_circuit(f"states[{i}]", state) for i, state in enumerate(request.states))
        order, contains = _order(request.order), request.name_contains.lower()
        size = pages.page_size(request.page_size)
        arguments = (int(order), sorted(map(int, states)), contains)
        after = pages.decode(request.page_token, "hosts", *arguments, read=_position)
        snapshot = await self._list.snapshot()
        page = snapshot.page(order, after=after, limit=size, states=states, name_contains=contains)
        response = pb.ListHostsResponse(hosts=[convert.host(state) for state in page.hosts])
        if page.last is not None:
            response.next_page_token = pages.encode(list(page.last), "hosts", *arguments)
        return response

    @rpc
    async def GetHost(self, request: pb.GetHostRequest, context: Any) -> pb.GetHostResponse:
        host = host_name("host", request.host)
        state, failures = await asyncio.gather(self._hosts.get(host), self._hosts.failures(host))
        if not state.known:
            raise NotFound(f"nothing was ever sent to {host}")
        attempts = await self._recent(host, failures)
        return pb.GetHostResponse(
            host=convert.host(state), recent_attempts=[convert.host_attempt(id, a) for id, a in attempts]
        )

    async def _recent(self, host: str, failures: list[HostAttempt]) -> list[tuple[DeliveryId, Attempt]]:
        """Newest first, those that the caller may see. Without the archive those that failed."""
        origins = allowed_origins()
        if origins is not None:
            ids = list({failure.id for failure in failures})
            known = await asyncio.gather(*(self._reader.get(id, origins) for id in ids))
            theirs = {delivery.id for delivery in known if delivery is not None}
            failures = [failure for failure in failures if failure.id in theirs]
        found = {(f.id, f.attempt.time_ms): f.attempt for f in failures}
        try:
            archived = await self._archive.attempts_of_host(host, limit=_RECENT, origins=origins)
        except ArchiveUnavailable:
            archived = []
        found |= {(id, attempt.time_ms): attempt for id, attempt in archived}
        newest = sorted(found.items(), key=lambda item: (item[1].time_ms, item[0]), reverse=True)
        return [(id, attempt) for (id, _), attempt in newest[:_RECENT]]

    @rpc
    async def PauseHost(self, request: pb.PauseHostRequest, context: Any) -> pb.PauseHostResponse:
        host = host_name("host", request.host)
        reason = plain_text("reason", request.reason, _MAX_REASON)
        ms = duration_ms(request, "duration") or FOR_EVER
        state = await self._hosts.pause(host, duration_ms=ms, reason=reason)
        duration_s = ms / 1000 if ms < FOR_EVER else None
        self._list.forget()
        await self._audit.record("host.pause", host, reason=reason, duration_s=duration_s)
        return pb.PauseHostResponse(host=convert.host(state))

    @rpc
    async def ResumeHost(self, request: pb.ResumeHostRequest, context: Any) -> pb.ResumeHostResponse:
        host = host_name("host", request.host)
        state = await self._hosts.resume(host)
        self._list.forget()
        await self._audit.record("host.resume", host)
        return pb.ResumeHostResponse(host=convert.host(state))

    @rpc
    async def UpdateHostPolicy(
        self, request: pb.UpdateHostPolicyRequest, context: Any
    ) -> pb.UpdateHostPolicyResponse:
        host, policy = host_name("host", request.host), request.policy
        for field, value, most in (
            ("max_in_flight", policy.max_in_flight, 1000),
            ("rate_per_second", policy.rate_per_second, 1e6),
            ("burst", policy.burst, 1_000_000),
        ):
            if not 0 <= value <= most:
                raise InvalidInput(f"policy.{field}", f"must be between 0 and {most:g}")
        state = await self._hosts.set_policy(
            host, HostPolicy(policy.max_in_flight, policy.rate_per_second, policy.burst)
        )
        self._list.forget()
        await self._audit.record("host.policy", host, **state.policy._asdict())
        return pb.UpdateHostPolicyResponse(host=convert.host(state))

    @rpc
    async def NotifyHostSeen(
        self, request: pb.NotifyHostSeenRequest, context: Any
    ) -> pb.NotifyHostSeenResponse:
        return pb.NotifyHostSeenResponse(probing=await self._hosts.seen(host_name("host", request.host)))


def _circuit(field: str, number: int) -> Circuit:
    if number not in convert.CIRCUITS:
        raise InvalidInput(field, f"{number} is not a state of hosts")
    return convert.CIRCUITS[number]


def _order(number: int) -> HostOrder:
    try:
        return HostOrder(number)
    except ValueError:
        raise InvalidInput("order", f"{number} is not an order of hosts") from None


def _position(position: Any) -> Position:
    """Raises ValueError."""
    match position:
        case [int() | float() as value, str() as host]:
            return Position(value, host)
        case _:
            raise ValueError("is no place in the list")
