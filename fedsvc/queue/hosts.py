"""Destination hosts as the queue knows them: shared by all workers, looked at and steered from here."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, Self

from fedsvc.config import Settings
from fedsvc.domain.delivery import Attempt, DeliveryId, Reason
from fedsvc.domain.inbox import partition_of
from fedsvc.domain.retry import NAME_GRACE_S
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link
from fedsvc.queue.script import Script
from fedsvc.queue.topology import Argument

#: as in lua/hosts.lua
_TERMS: Final = struct.Struct(">HHHHdddddddddd")
_HOST: Final = struct.Struct("<BHfffddBfdBBBHHIIIdddddddd")
_POLICY: Final = struct.Struct(">Hdd")
#: sequence, then as in record.py: start after acceptance (ms), latency (ms), status, reason
_ATTEMPT: Final = struct.Struct(">QIHHB")
_PAUSED, _GONE, _DOWN = 1, 2, 4
#: milliseconds; stands for a pause without an end
FOR_EVER: Final = 10**15
#: milliseconds for which a host is remembered that nothing is sent to: 30 days
_REMEMBERED_MS: Final = 30 * 86_400_000
#: in one partition; with more nothing is set right
_MOST_IN_FLIGHT: Final = 5000


class HostRecord(NamedTuple):
    """The state of a host as it is packed in Redis; what it means is told in `lua/hosts.lua`. Times are
    milliseconds since the epoch."""

    calm: int = 1
    flying: int = 0
    limit: float = 1.0
    latency: float = 0.0
    usual: float = 0.0
    success: float = 0.0
    cut: float = 0.0
    dialect: int = 0
    tokens: float = 0.0
    filled: float = 0.0
    circuit: int = 0
    flags: int = 0
    turn: int = 0
    failures: int = 0
    opens: int = 0
    lane1: int = 0
    lane2: int = 0
    lane3: int = 0
    pause: float = 0.0
    probe: float = 0.0
    since: float = 0.0
    failure: float = 0.0
    recovered: float = 0.0
    barrier: float = 0.0
    spoke: float = 0.0
    gone: float = 0.0

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Raises struct.error if it is none, see `is_host`."""
        return cls._make(_HOST.unpack(packed))

    def pack(self) -> bytes:
        """With `calm` as the other fields have it."""
        calm = not (
            self.circuit or self.flags or self.failures or self.opens or self.waiting
            or self.pause or self.since or self.recovered or self.barrier or self.gone
        )  # fmt: skip
        return _HOST.pack(calm, *self[1:])

    @property
    def waiting(self) -> int:
        """In its lanes."""
        return self.lane1 + self.lane2 + self.lane3


class Circuit(IntEnum):
    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2
    PAUSED = 3  # by an operator, whatever the circuit says
    GONE = 4  # so its shared inbox says, and nothing there has taken anything for long


class HostPolicy(NamedTuple):
    """Limits of one host; 0 stands for the default."""

    max_in_flight: int = 0
    rate: float = 0.0  # deliveries per second
    burst: float = 0.0  # deliveries at once after a rest


class Audited(NamedTuple):
    """What an audit found in a partition."""

    #: hosts of which it was wrong how many are in flight; set right
    wrong: int
    #: hosts that nothing was sent to for long
    forgotten: int
    #: by how much the sum of what origins have pending differs from what is pending
    backlog_off: int


@dataclass(frozen=True, slots=True)
class HostState:
    """Times are milliseconds since the epoch, 0 for none."""

    host: str
    circuit: Circuit
    #: deliveries that wait for it: in its lanes, or in SQL
    parked: int
    in_flight: int
    #: how many may be in flight now: between 1 and the limit
    limit: float
    #: in a row
    failures: int
    latency_ms: float
    next_probe_ms: int
    down_since_ms: int
    last_success_ms: int
    last_failure_ms: int
    paused_until_ms: int
    pause_reason: str
    policy: HostPolicy
    #: whether anything was ever sent to it, or it was paused or given limits of its own
    known: bool = True


class HostAttempt(NamedTuple):
    id: DeliveryId
    attempt: Attempt


def pack_terms(settings: Settings) -> bytes:
    """The limits that all hosts share, as the scripts read them."""
    scale = settings.retry_scale * 1000
    return _TERMS.pack(
        settings.host_concurrency,
        min(settings.host_start, settings.host_concurrency),
        settings.circuit_failures,
        settings.ready_window,
        settings.host_rate,
        settings.host_burst,
        settings.circuit_first_probe * scale,
        settings.circuit_longest_probe * scale,
        settings.host_down_after * 1000,
        settings.recovery_rate,
        settings.recovery_doubling * scale,
        settings.max_retry_duration * 1000,
        settings.signature_memory * 1000,
        NAME_GRACE_S * 1000 * settings.retry_scale,
    )


class Hosts:
    def __init__(self, link: Link, keys: Keys, settings: Settings) -> None:
        self._link = link
        self._keys = keys
        self._partitions = settings.partitions
        self._terms = pack_terms(settings)
        self._steer = Script("steer")
        self._audit = Script("audit")

    async def get(self, host: str) -> HostState:
        """A host as it is now; one that was never tried is as good as new. Raises QueueUnavailable."""
        return (await self._run(host, "look"))[1]

    async def failures(self, host: str) -> list[HostAttempt]:
        """Its attempts that failed last, newest first, 16 at most. Raises QueueUnavailable."""
        partition = partition_of(host, self._partitions)
        packed = await self._link.call("HGET", self._keys.partition(partition).recent, host) or b""
        return [
            HostAttempt(
                id := DeliveryId(partition, sequence),
                Attempt(id.accepted_ms + offset, latency, status, Reason(reason)),
            )
            for sequence, offset, latency, status, reason in _ATTEMPT.iter_unpack(packed)
        ]

    async def pause(self, host: str, *, duration_ms: int = FOR_EVER, reason: str = "") -> HostState:
        """Deliver nothing to it for a while; what comes is parked. Raises QueueUnavailable."""
        return (await self._run(host, "pause", min(duration_ms, FOR_EVER), reason))[1]

    async def resume(self, host: str) -> HostState:
        """End its pause, and probe it now if it is down. Raises QueueUnavailable."""
        return (await self._run(host, "resume"))[1]

    async def set_policy(self, host: str, policy: HostPolicy) -> HostState:
        """Raises QueueUnavailable."""
        return (await self._run(host, "policy", _POLICY.pack(*policy)))[1]

    async def seen(self, host: str) -> bool:
        """The application has heard from it: probe it now if it is down. Whether it is going to be probed
        early. Raises QueueUnavailable."""
        return (await self._run(host, "seen"))[0]

    async def audit(self, partition: int) -> Audited:
        """Set right what hosts of a partition are said to have in flight, and forget those that nothing was
        sent to for long. Raises QueueUnavailable."""
        prefix = self._keys.partition(partition).prefix
        arguments: list[Argument] = [self._terms, _REMEMBERED_MS, _MOST_IN_FLIGHT]
        return Audited(*map(int, await self._link.run(self._audit, prefix, arguments)))

    async def _run(self, host: str, what: str, *arguments: Argument) -> tuple[bool, HostState]:
        prefix = self._keys.partition(partition_of(host, self._partitions)).prefix
        answer = await self._link.run(self._steer, prefix, [self._terms, host, what, *arguments])
        packed, reason, policy, now, _, spilled = answer[1:]
        return bool(answer[0]), state_of(host, packed, reason, policy, int(now), spilled)


def is_host(packed: bytes) -> bool:
    """Whether these bytes are the state of a host; what are not, are as good as none for the scripts too."""
    return len(packed) == _HOST.size


def circuit_of(circuit: int, flags: int, pause: float, now_ms: int) -> Circuit:
    """What is told of a host's circuit: that it is gone, else that it is paused, goes before the rest."""
    if flags & _GONE:
        return Circuit.GONE
    if flags & _PAUSED and pause > now_ms:
        return Circuit.PAUSED
    return Circuit(circuit)


def state_of(
    host: str, packed: bytes, reason: bytes, policy: bytes, now_ms: int, spilled: int = 0
) -> HostState:
    """Of the packed state of a host, empty if there is none."""
    if not is_host(packed):
        return HostState(
            host, Circuit.CLOSED, 0, 0, 1.0, 0, 0.0, 0, 0, 0, 0, 0, "", HostPolicy(), known=False
        )
    h = HostRecord.unpack(packed)
    state = circuit_of(h.circuit, h.flags, h.pause, now_ms)
    return HostState(
        host=host,
        circuit=state,
        parked=h.waiting + spilled,
        in_flight=h.flying,
        limit=h.limit,
        failures=h.failures,
        latency_ms=h.latency,
        next_probe_ms=int(h.probe) if state is Circuit.OPEN else 0,
        down_since_ms=int(h.since),
        last_success_ms=int(h.success),
        last_failure_ms=int(h.failure),
        paused_until_ms=int(h.pause) if h.pause > now_ms else 0,
        pause_reason=reason.decode() if state is Circuit.PAUSED else "",
        policy=HostPolicy(*_POLICY.unpack(policy)) if policy else HostPolicy(),
    )
