"""The short way for calm hosts (`lua/calm.lua`) does what the long way does (`lua/hosts.lua`)."""

from __future__ import annotations

import copy
import hashlib
import random
from asyncio import gather
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from servers.queue import PARTITIONS, Queue
from servers.valkey import ValkeyServer

from fedsvc.domain.delivery import DeliveryState, Priority, Reason
from fedsvc.domain.knock import Dialect
from fedsvc.queue.consumer import Admitted, Consumer, Messages, Shares, Signal
from fedsvc.queue.hosts import HostRecord
from fedsvc.queue.link import Link
from fedsvc.queue.script import Script

NOW_MS: Final = 1_900_000_000_123
HOSTS: Final = 6
WELL: Final = Signal.ANSWERED | Signal.TOOK
TOKENS: Final = [-3, 0, 0.5, 1 - 2**-11, 1, 3, 2000]
#: how often an answer is one of these
ANSWERS: Final = (
    [(DeliveryState.DELIVERED, Reason.OK, WELL)] * 12
    + [(DeliveryState.RETRY, Reason.TIMEOUT, Signal.FAILED)] * 2
    + [
        (DeliveryState.RETRY, Reason.RATE_LIMITED, Signal.ANSWERED | Signal.SLOWED),
        (DeliveryState.DEAD, Reason.GONE, Signal.ANSWERED | Signal.INBOX_GONE),
        (DeliveryState.DEAD, Reason.BAD_REQUEST, Signal.ANSWERED),
        (DeliveryState.DELIVERED, Reason.OK, Signal.ANSWERED | Signal.TOOK | Signal.SLOWED),
    ]
)


def changed(script: Script, *changes: tuple[str, str]) -> Script:
    """The same with some of its text replaced."""
    made = copy.copy(script)
    for old, new in changes:
        assert old in made.source, f"{script.name} has changed: {old}"
        made.source = made.source.replace(old, new)
    made.sha = hashlib.sha1(made.source.encode(), usedforsecurity=False).hexdigest()
    return made


class Still(Link):
    """Runs scripts with a clock that stands still."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._still: dict[str, Script] = {}

    def run(self, script: Script, key: str, args: Any = (), *, durable: bool = False) -> Any:
        if script.sha not in self._still:
            now = f"local time = {{ '{NOW_MS // 1000}', '{NOW_MS % 1000 * 1000}' }}"
            self._still[script.sha] = changed(script, ("local time = call('TIME')", now))
        return super().run(self._still[script.sha], key, args, durable=durable)


class StillQueue(Queue):
    """With time that stands still unless a test moves it; hosts take the long way if it is `long`."""

    def __init__(self, link: Link, namespace: str, long: bool, **environment: str) -> None:
        super().__init__(link, namespace, **environment)
        self.long = long

    async def now_ms(self) -> int:
        return NOW_MS + self._shift_ms

    def consumer(self, worker: str) -> Consumer:
        new, made = worker not in self._consumers, super().consumer(worker)
        if not new:
            return made
        if self.long:
            change = ("if is_calm ~= 1 then", "if true then")
        else:
            change = ("calm[name] = true\n", "calm[name] = true\ncall('INCR', P .. ':calm')\n")
        made._admit, made._settle = changed(Script("admit"), change), changed(Script("settle"), change)
        return made

    async def contents(self) -> dict[str, Any]:
        """Everything, without what only says how it came about."""
        found = {}
        keys = sorted(await self.link.call("KEYS", f"{self.settings.namespace}:*"))
        kinds = [kind.decode() for kind in await gather(*(self.link.call("TYPE", key) for key in keys))]
        reads = {
            "hash": ("HGETALL",),
            "list": ("LRANGE", 0, -1),
            "zset": ("ZRANGE", 0, -1, "WITHSCORES"),
            "set": ("SMEMBERS",),
            "stream": ("XRANGE", "-", "+"),
            "string": ("GET",),
        }
        values = await gather(
            *(self.link.call(reads[k][0], key, *reads[k][1:]) for key, k in zip(keys, kinds, strict=True))
        )
        for key, kind, value in zip(keys, kinds, values, strict=True):
            name = key.decode().removeprefix(self.settings.namespace)
            if kind == "hash":
                value = dict(zip(value[::2], value[1::2], strict=True))
            if not name.endswith(":calm"):
                found[name] = value
        return found

    async def calm(self) -> int:
        """How often the short way was taken."""
        prefixes = [self.keys.partition(p).prefix for p in range(PARTITIONS)]
        return sum([int(await self.link.call("GET", f"{prefix}:calm") or 0) for prefix in prefixes])


def state(dice: random.Random) -> bytes:
    """Of a host that is calm, or nearly."""

    def seldom(*values: Any) -> Any:
        return dice.choice(values) if dice.random() < 0.06 else 0

    def ago(most: int) -> float:
        return float(NOW_MS - dice.randrange(most))

    limit = dice.choice([1, 1.4, 2, 3.75, 7.999, 8])
    return HostRecord(
        circuit=seldom(1, 2), flags=seldom(1, 2, 4, 8), turn=dice.randrange(10),
        flying=dice.choice([0, 0, 0, 1, 2, 8]), failures=seldom(1, 4), opens=seldom(1, 3), lane3=seldom(1),
        limit=limit, latency=dice.choice([0, 12, 900]), usual=dice.choice([0, 12, 300]),
        tokens=dice.choice(TOKENS), filled=dice.choice([NOW_MS, NOW_MS + 50, ago(3000), ago(10**7)]),
        pause=seldom(ago(10**6), NOW_MS + 20), probe=dice.choice([0, 0, ago(10**6), NOW_MS + 500]),
        since=seldom(ago(10**6)), success=dice.choice([0, ago(10**6), ago(10**6)]),
        failure=dice.choice([0, ago(10**8)]), recovered=seldom(ago(20_000)),
        cut=dice.choice([0, 0, ago(2000)]), barrier=seldom(ago(1000) * 1000, float(NOW_MS + 10**6) * 1000),
        dialect=dice.choice([0, 0, 0, 1, 2]), spoke=ago(10**11), gone=seldom(ago(10**6)),
    ).pack()  # fmt: skip


async def about(queue: StillQueue) -> dict[str, Any]:
    """What a queue holds, with hosts taken apart. Their small floats are about right: the short way rounds
    them after each delivery, the long way at the end of a script. It fills tokens up when it takes one."""
    now_ms, rate, burst = await queue.now_ms(), queue.settings.host_rate, queue.settings.host_burst

    def apart(packed: bytes) -> HostRecord:
        h = HostRecord.unpack(packed)
        if rate > 0:
            full = min(burst, max(0, h.tokens) + rate * max(0, now_ms - h.filled) / 1000)
            h = h._replace(tokens=full, filled=now_ms)
        about_right: dict[str, Any] = {
            name: pytest.approx(getattr(h, name), rel=1e-5, abs=1e-5)
            for name in ("limit", "latency", "usual", "tokens")
        }
        return h._replace(**about_right)

    return {
        name: {host: apart(packed) for host, packed in value.items()} if name.endswith(":hosts") else value
        for name, value in (await queue.contents()).items()
    }


@pytest.fixture
async def link(valkey: ValkeyServer) -> AsyncIterator[Link]:
    made = Still(valkey.url)
    yield made
    await made.close()


def answer(dice: random.Random, quiet: bool) -> tuple[tuple[DeliveryState, Reason], dict[str, Any]]:
    """Of an inbox; seldom another than usual, if it is a `quiet` time."""
    usual = quiet and dice.random() < 0.98
    state, reason, signal = ANSWERS[0] if usual else dice.choice(ANSWERS)
    if usual:
        return (state, reason), {"signal": signal, "latency_ms": dice.choice([1, 12, 900])}
    more = {"signal": signal, "latency_ms": dice.choice([1, 12, 900, 70_000]), "wait_ms": 500}
    if dice.random() < 0.1:
        more["pause_ms"] = 2000
    if dice.random() < 0.1:
        more["learnt"] = Dialect(1)
    return (state, reason), more


def settings(dice: random.Random) -> dict[str, str]:
    return {
        "FEDSVC_HOST_CONCURRENCY": dice.choice(["1", "4", "8"]),
        "FEDSVC_HOST_START": dice.choice(["1", "4"]),
        # tokens are kept as small floats, and rounded more often in the short way: here they need no rounding
        "FEDSVC_HOST_RATE": dice.choice(["0", "0", "0.9765625", "1000"]),
        "FEDSVC_HOST_BURST": dice.choice(["1", "5", "2000"]),
        "FEDSVC_READY_WINDOW": dice.choice(["1", "512"]),
        "FEDSVC_SIGNATURE_MEMORY": "604800",
    }


@pytest.mark.parametrize("seed", range(20))
async def test_the_short_way_and_the_long_way_come_to_the_same(link: Link, namespace: str, seed: int) -> None:
    dice = random.Random(seed)
    chosen = settings(dice)
    queues = [
        StillQueue(link, f"{namespace}-{'long' if long else 'short'}", long, **chosen)
        for long in (False, True)
    ]
    for number in range(HOSTS):
        if dice.random() < 0.85:
            packed = state(dice)
            for queue in queues:
                prefix = queue.keys.partition(queue.partition_of(number)).prefix
                await link.call("HSET", f"{prefix}:hosts", f"h{number}.example", packed)
    flying: list[list[Admitted]] = [[], []]
    for step in range(20):
        quiet = dice.random() < 0.7
        for activity in range(dice.choice([1, 3, 12])):
            inbox, priority = dice.randrange(HOSTS), dice.choice([*Priority, *[Priority.BULK] * 5])
            for queue in queues:
                await queue.enqueue(f"{step}-{activity}", inbox=inbox, priority=priority)
        limit, only_urgent = dice.choice([1, 8, 20]), dice.random() < 0.2
        messages = dice.choice(list(Messages))
        for partition in range(PARTITIONS):
            handed = [
                await queue.consumer("a").admit(
                    partition, Shares(limit, limit, 0, 0), only_urgent=only_urgent, messages=messages
                )
                for queue in queues
            ]
            assert handed[0] == handed[1]
            for held, each in zip(flying, handed, strict=True):
                held += each.admitted
        for partition in range(PARTITIONS):
            batches = [
                [admitted for admitted in held if admitted.id.partition == partition] for held in flying
            ]
            many = len(batches[0]) if quiet else dice.randint(0, len(batches[0]))
            answers = [answer(dice, quiet) for _ in range(many)]
            settled = [
                await queue.consumer("a").settle(
                    partition,
                    [
                        await queue.settlement(admitted, *told, **more)
                        for admitted, (told, more) in zip(batch, answers, strict=False)
                    ],
                )
                for queue, batch in zip(queues, batches, strict=True)
                if many
            ]
            assert settled[:1] == settled[1:]
            for held, batch in zip(flying, batches, strict=True):
                for admitted in batch[:many]:
                    held.remove(admitted)
        assert await about(queues[0]) == await about(queues[1])
        passed = dice.choice([0, 1, 40, 3000])
        for queue in queues:
            await queue.pass_time(passed, watched=False)
            await queue.promote()
    assert await queues[0].calm() > 0
    assert await queues[1].calm() == 0
