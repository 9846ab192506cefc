"""Takes the queue in Redis apart and checks that everything in it fits together: what must hold after every
step, whatever the step was."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fedsvc.domain.delivery import DeliveryId, DeliveryState
from fedsvc.domain.inbox import host_of
from fedsvc.queue.hosts import HostRecord
from fedsvc.queue.record import Finished, Record, unpack
from servers.queue import PARTITIONS, Queue

IN_LANE, SPILLED, IN_LINE = 1, 2, 3
FOLLOWED = 4
STREAMS = ("ready:urgent", "ready:normal", "ready:bulk", "woken")


#: those of a partition and a kind
Keys = Callable[[str], list[bytes]]


@dataclass
class Structure:
    """One partition, as it is."""

    pending: dict[int, Record] = field(default_factory=dict)
    dead: dict[int, Record] = field(default_factory=dict)
    #: sequence -> where it is found
    places: dict[int, list[str]] = field(default_factory=dict)
    in_flight: Counter[str] = field(default_factory=Counter)


async def check(queue: Queue) -> dict[int, Structure]:
    """Every partition, once it was found sound."""
    await queue.conserved()
    found = await asyncio.gather(*(_partition(queue, p) for p in range(PARTITIONS)))
    return dict(enumerate(found))


async def _partition(queue: Queue, partition: int) -> Structure:
    prefix = queue.keys.partition(partition).prefix
    call = queue.link.call

    async def pairs(key: str) -> dict[bytes, bytes]:
        flat = await call("HGETALL", f"{prefix}:{key}")
        return dict(zip(flat[::2], flat[1::2], strict=True))

    s = Structure()
    names = await call("KEYS", f"{prefix}:*")

    def keys(kind: str) -> list[bytes]:
        return [name for name in names if name.startswith(f"{prefix}:{kind}:".encode())]

    for name, packed in (await pairs("deliveries")).items():
        record = unpack(packed, DeliveryId(partition, int(name)))
        if isinstance(record, Finished):
            continue
        if not record.state.is_terminal:
            s.pending[int(name)] = record
        else:
            assert record.state is DeliveryState.DEAD, record
            s.dead[int(name)] = record
    hosts = {name.decode(): HostRecord.unpack(packed) for name, packed in (await pairs("hosts")).items()}

    def found(sequence: int, where: str) -> None:
        s.places.setdefault(sequence, []).append(where)

    await _streams(call, prefix, s, found)
    await _lines(call, prefix, keys, s, found)
    for name in await call("ZRANGE", f"{prefix}:retry", 0, -1):
        assert s.pending[int(name)].state in (DeliveryState.RETRY, DeliveryState.SCHEDULED)
        found(int(name), "retry")
    for host, state in hosts.items():
        assert HostRecord.unpack(state.pack()) == state, f"{host} is calm, or is not"
        for lane, counted_there in enumerate((state.lane1, state.lane2, state.lane3), 1):
            items = await call("LRANGE", f"{prefix}:lane:{lane}:{host}", 0, -1)
            assert len(items) == counted_there, f"{host} counts its lane {lane} wrong"
            for sequence in {int(i) for i in items}:
                waiting = s.pending.get(sequence)
                # others have ended, or gone on, and left their name behind
                if waiting and waiting.state is DeliveryState.PARKED and waiting.place == IN_LANE:
                    found(sequence, f"lane of {host}")
        assert state.flying == s.in_flight[host], f"{host} counts what is in flight wrong"
    shut = sum(state.waiting for state in hosts.values() if state.circuit)
    counted = await call("HGET", f"{prefix}:counters", "shut")
    assert int(counted or 0) == shut, "what waits for hosts that are down is counted wrong"
    followed = {k.decode(): int(v) for k, v in (await pairs("followed")).items()}
    await _order(call, prefix, keys, s, followed, found)
    spilled = 0
    for told in (await pairs("spills")).values():
        spilled += int(told.split(b" ")[3])
    owners: Counter[str] = Counter()
    told_by = await asyncio.gather(
        *(call("HGET", f"{prefix}:message:{pending.message}", "o") for pending in s.pending.values())
    )
    for pending, owner in zip(s.pending.values(), told_by, strict=True):
        owners[pending.inbox if pending.spilled else owner.decode()] += 1
    assert {k.decode(): int(v) for k, v in (await pairs("backlog")).items()} == dict(owners)
    for told in (await pairs("spills")).values():
        _, _, _, many, _, shares, _, _ = told.decode().split(" ")
        assert int(many) == sum(int(share.partition("=")[2]) for share in shares.split(","))
    stubs = [n for n, r in s.pending.items() if r.state is DeliveryState.PARKED and r.place == SPILLED]
    assert len(stubs) == spilled
    for sequence in stubs:
        found(sequence, "sql")
    for sequence, pending in s.pending.items():
        where = s.places.get(sequence, [])
        assert len(where) == 1, f"{sequence} ({pending.state.name}) is in {where}"
    await _messages(call, keys, s, set(stubs))
    return s


async def _streams(call: Any, prefix: str, s: Structure, found: Any) -> None:
    for stream in STREAMS:
        key = f"{prefix}:{stream}"
        if not await call("EXISTS", key) or not await call("XINFO", "GROUPS", key):
            flying: set[bytes] = set()
        else:
            flying = {item[0] for item in await call("XPENDING", key, "workers", "-", "+", 10_000)}
        entries = await call("XRANGE", key, "-", "+")
        assert flying <= {entry for entry, _ in entries}
        for entry, fields in entries:
            record = s.pending[int(fields[1])]
            assert (record.state, record.place) == (DeliveryState.READY, int(entry.split(b"-")[0]))
            found(int(fields[1]), stream)
            if entry in flying:
                s.in_flight[host_of(record.inbox)] += 1
            else:
                assert stream != "woken", "nothing waits there"


async def _lines(call: Any, prefix: str, keys: Keys, s: Structure, found: Any) -> None:
    """Each line has one turn, and who stands in lines is counted."""
    for priority in (1, 2, 3):
        turns = await call("LRANGE", f"{prefix}:lines:{priority}", 0, -1)
        lines = keys(f"line:{priority}")
        assert sorted(turns) == sorted(key.split(b":", 4)[4] for key in lines)
        standing = 0
        for key in lines:
            origin = key.decode().split(":", 4)[4]
            for name in await call("LRANGE", key, 0, -1):
                record = s.pending.get(int(name))
                if record is None or record.state is not DeliveryState.READY or record.place != IN_LINE:
                    continue  # it has ended, and left its name behind
                assert record.priority == priority
                assert await call("HGET", f"{prefix}:message:{record.message}", "o") == origin.encode()
                found(int(name), f"line of {origin}")
                standing += 1
        assert int(await call("HGET", f"{prefix}:counters", f"line:{priority}") or 0) == standing


async def _order(
    call: Any, prefix: str, keys: Keys, s: Structure, followed: dict[str, int], found: Any
) -> None:
    """Whoever is held back has somebody before it whose end lets it go."""
    expected: Counter[str] = Counter()
    away = 0
    for sequence, record in s.pending.items():
        if record.flags & FOLLOWED and record.spilled:
            away += 1  # whose order it keeps is in SQL too
        elif record.flags & FOLLOWED:
            group = await call("HGET", f"{prefix}:message:{record.message}", "g")
            assert group, sequence
            expected[f"{group.decode()}:{host_of(record.inbox)}"] += 1
    assert expected <= Counter(followed)
    assert all(n > 0 for n in followed.values())
    assert sum(followed.values()) == expected.total() + away
    waiting = set()
    for key in keys("held"):
        chain = key.decode().split(":held:", 1)[1]
        live = set()
        for item in await call("LRANGE", key, 0, -1):
            record_or_none = s.pending.get(int(item))
            if record_or_none and record_or_none.state is DeliveryState.PARKED:
                assert record_or_none.place not in (IN_LANE, SPILLED)
                live.add(int(item))
                found(int(item), "held")
        waiting |= live
        assert followed.get(chain, 0) > 0, f"nobody lets {chain} go"


async def _messages(call: Any, keys: Keys, s: Structure, stubs: set[int]) -> None:
    """A body is kept as long as it is needed, and no longer."""
    needed: Counter[int] = Counter(
        r.message
        for n, r in (s.pending | s.dead).items()
        if n not in stubs and r.message  # 0: SQL has lost it
    )
    messages = keys("message")
    counts = await asyncio.gather(*(call("HGET", key, "n") for key in messages))
    kept = {int(key.rsplit(b":", 1)[1]): int(n) for key, n in zip(messages, counts, strict=True)}
    assert kept == dict(needed)
