"""The part of OperationsService that shows and steers hosts."""

from __future__ import annotations

from typing import Any, Final

from fedsvc.errors import InvalidInput
from fedsvc.queue.hosts import FOR_EVER, HostPolicy, Hosts
from fedsvc.server import convert
from fedsvc.server.audit import Audit
from fedsvc.server.errors import rpc
from fedsvc.server.intake import host_name
from fedsvc.server.times import duration_ms
from fedsvc.v1 import operations_service_pb2 as pb

#: characters
_MAX_REASON: Final = 512


class HostSteering:
    def __init__(self, hosts: Hosts, audit: Audit) -> None:
        self._hosts = hosts
        self._audit = audit

    @rpc
    async def GetHost(self, request: pb.GetHostRequest, context: Any) -> pb.GetHostResponse:
        state = await self._hosts.get(host_name("host", request.host))
        return pb.GetHostResponse(host=convert.host(state))

    @rpc
    async def PauseHost(self, request: pb.PauseHostRequest, context: Any) -> pb.PauseHostResponse:
        host = host_name("host", request.host)
        if len(request.reason) > _MAX_REASON or not request.reason.isprintable():
            raise InvalidInput("reason", f"is longer than {_MAX_REASON} characters or has control characters")
        ms = duration_ms(request, "duration") or FOR_EVER
        state = await self._hosts.pause(host, duration_ms=ms, reason=request.reason)
        duration_s = ms / 1000 if ms < FOR_EVER else None
        await self._audit.record("host.pause", host, reason=request.reason, duration_s=duration_s)
        return pb.PauseHostResponse(host=convert.host(state))

    @rpc
    async def ResumeHost(self, request: pb.ResumeHostRequest, context: Any) -> pb.ResumeHostResponse:
        host = host_name("host", request.host)
        state = await self._hosts.resume(host)
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
        await self._audit.record("host.policy", host, **state.policy._asdict())
        return pb.UpdateHostPolicyResponse(host=convert.host(state))

    @rpc
    async def NotifyHostSeen(
        self, request: pb.NotifyHostSeenRequest, context: Any
    ) -> pb.NotifyHostSeenResponse:
        return pb.NotifyHostSeenResponse(probing=await self._hosts.seen(host_name("host", request.host)))
