"""Where Redis is: one server, one found through Sentinel, or a cluster. For `link.py` only.

    redis://[user:password@]host:port/db            rediss:// with TLS, unix:// for a socket
    redis+sentinel://[user:password@]host:port[,host:port...]/service[/db]
    redis+cluster://[user:password@]host:port[,host:port...]

The last two also as rediss+...; options behind `?` are redis-py's (ssl_ca_certs, ssl_certfile, ...).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import redis.asyncio as aioredis
from hiredis import pack_command
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fedsvc.config_files import check_authorities, check_own_certificate
from fedsvc.errors import ConfigurationError
from fedsvc.queue.wire import Wire

Argument = str | bytes | int | float
Command = tuple[Argument, ...]

#: TLS options that a URL may carry; everything else is ours to decide
_OPTIONS: Final = frozenset(
    {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version"}
)
#: answers after which it is not certain who is master of what
_STALE: Final = (ClusterDownError, AskError, TryAgainError, RedisConnectionError, RedisTimeoutError)
#: commands whose key is not their second word
_KEY_AT: Final = {"EVALSHA": 3, "EVAL": 3, "MEMORY": 2}

#: what connections say of redis-py: by itself each would read its version anew from files, for milliseconds
_DRIVER: Final = DriverInfo()

#: as hiredis writes it: redis-py's own takes four times as long
_packed = cast(Callable[[Command], bytes], pack_command)


class Topology(Protocol):
    async def exchange(self, commands: Sequence[Command], confirm: Command | None) -> list[Any]:
        """Answers in order, errors among them as values. `confirm` is appended for each server that gets a
        part of the commands; what it answers comes last, one for each server.

        Raises RedisError or OSError if nothing was answered."""
        ...

    async def everywhere(self, command: Command) -> list[Any]:
        """The answers of all masters."""
        ...

    def pubsub(self) -> PubSub: ...

    async def close(self) -> None: ...


def connect(url: str, *, timeout: float, connections: int) -> Topology:
    """Connects at first use only. Raises ConfigurationError, which never shows a password."""
    scheme = url.split(":", 1)[0].lower()
    if scheme.startswith("rediss"):
        _check_files(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": _DRIVER,
    }
    try:
        match scheme:
            case "redis" | "rediss" | "unix":
                # A unix socket has no keep-alive, and redis-py refuses to be asked for one.
                if scheme != "unix":
                    options["socket_keepalive"] = True
                return Single(aioredis.Redis.from_url(url, max_connections=connections, **options), timeout)
            case "redis+sentinel" | "rediss+sentinel":
                return _through_sentinel(url, options, connections)
            case "redis+cluster" | "rediss+cluster":
                hosts, path, named = _parts(url)
                if path.strip("/"):
                    raise ValueError("a cluster has no numbered databases")
                return Clustered(hosts, {**options, **named}, connections)
            case _:
                pass
    except (ValueError, TypeError):  # its text may hold parts of the password
        pass
    raise ConfigurationError(
        "REDIS_URL", "is not a redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL"
    )


def _check_files(url: str) -> None:
    """Those of TLS: a connection that cannot use them is only told as Redis being away."""
    try:
        named = dict(parse_qsl(urlsplit(url).query))
    except ValueError:
        return  # told below, as all that is wrong with a URL
    check_authorities("REDIS_URL", named.get("ssl_ca_certs", ""))
    certificate, key = named.get("ssl_certfile", ""), named.get("ssl_keyfile", "")
    if key and not certificate:
        raise ConfigurationError("REDIS_URL", "ssl_keyfile needs ssl_certfile beside it")
    if certificate:
        check_own_certificate("REDIS_URL", certificate, key, named.get("ssl_password", ""))


def _parts(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """Hosts, path, and options for connections."""
    split = urlsplit(url)
    account, _, authority = split.netloc.rpartition("@")
    hosts = []
    for place in authority.split(","):
        host, _, port = place.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError("expected HOST:PORT")
        hosts.append((host.strip("[]"), int(port)))
    named: dict[str, Any] = {}
    if account:
        user, colon, password = account.partition(":")
        named = {"username": unquote(user) or None, "password": unquote(password) if colon else None}
    if split.scheme.startswith("rediss"):
        named["ssl"] = True
    for name, value in parse_qsl(split.query, strict_parsing=bool(split.query)):
        if name not in _OPTIONS:
            raise ValueError("unknown option")
        named[name] = value.lower() in ("1", "true", "yes") if name == "ssl_check_hostname" else value
    return hosts, split.path, named


def _through_sentinel(url: str, options: dict[str, Any], connections: int) -> Single:
    hosts, path, named = _parts(url)
    service, _, db = path.strip("/").partition("/")
    if not service or (db and not db.isdigit()):
        raise ValueError("expected /SERVICE or /SERVICE/DB")
    # Sentinels have accounts of their own; ours is the servers'.
    quick = {k: v for k, v in options.items() if k != "retry"}
    tls = {k: v for k, v in named.items() if k.startswith("ssl")}
    sentinel = Sentinel(hosts, sentinel_kwargs={**quick, **tls})  # type: ignore[no-untyped-call]
    client = sentinel.master_for(
        service, db=int(db or 0), max_connections=connections, socket_keepalive=True, **options, **named
    )
    return Single(client, options["socket_timeout"], sentinel.sentinels)


class Single:
    """One server; after a failover another, which Sentinel names."""

    #: seconds without use, after which the event loop gets a moment to learn that a connection has ended
    IDLE: Final = 0.005

    def __init__(
        self, client: aioredis.Redis, timeout: float, sentinels: Sequence[aioredis.Redis] = ()
    ) -> None:
        """`timeout`: seconds within which all commands of a flight must be answered."""
        self._redis = client
        self._timeout = timeout
        self._sentinels = sentinels
        #: connections that nobody uses, and since when
        self._free: list[tuple[Wire, float]] = []
        # Answers are read as Redis gives them: what redis-py makes of them depends on its version.
        client.response_callbacks.clear()

    async def exchange(self, commands: Sequence[Command], confirm: Command | None) -> list[Any]:
        if confirm is not None:
            commands = (*commands, confirm)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        wire = await self._usable() or await self._made(deadline)
        timer = loop.call_at(deadline, wire.late)
        try:
            answers = await wire.fly(b"".join(map(_packed, commands)), len(commands))
            if self._sentinels and any(isinstance(answer, ReadOnlyError) for answer in answers):
                raise RedisConnectionError("this master is a replica now")
        except BaseException:
            # What it has still to say belongs to nobody. Others may have broken with it.
            await self._drop(wire, *(each for each, _ in self._free))
            raise
        finally:
            timer.cancel()
        self._free.append((wire, loop.time()))
        return answers

    async def _usable(self) -> Wire | None:
        now = asyncio.get_running_loop().time()
        while self._free:
            wire, since = self._free.pop()
            if now - since > self.IDLE:
                await asyncio.sleep(0)
                await asyncio.sleep(0)  # what came is read after those who wait for their turn
            if wire.usable:
                return wire
            await self._drop(wire)
        return None

    async def _made(self, deadline: float) -> Wire:
        make: Callable[[], Connection] = self._redis.connection_pool.make_connection
        connection = make()
        try:
            async with asyncio.timeout_at(deadline):
                await connection.connect()  # type: ignore[no-untyped-call]
            return Wire(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    async def _drop(self, *wires: Wire) -> None:
        self._free = [each for each in self._free if each[0] not in wires]
        for wire in wires:
            await wire.close()

    async def everywhere(self, command: Command) -> list[Any]:
        return [await self._redis.execute_command(*command)]  # type: ignore[no-untyped-call]

    def pubsub(self) -> PubSub:
        return self._redis.pubsub(ignore_subscribe_messages=True)

    async def close(self) -> None:
        await self._drop(*(wire for wire, _ in self._free))
        for client in (self._redis, *self._sentinels):
            await client.aclose(close_connection_pool=True)


class Clustered:
    """A cluster: commands go to the master of their key's slot, those to one master together."""

    #: times that commands follow slots that have moved
    MOVES: Final = 3
    #: seconds between two looks at who is master of what, or two questions to one that did not answer
    PAUSE: Final = 0.5

    def __init__(self, hosts: Sequence[tuple[str, int]], options: dict[str, Any], connections: int) -> None:
        self._options = options
        self._cluster = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in hosts],
            max_connections=connections,
            **options,
        )
        self._stale = False
        self._looking: asyncio.Lock | None = None
        #: looking beside the commands, and when that may begin anew (seconds, the loop's clock)
        self._look: asyncio.Task[None] | None = None
        self._look_due = 0.0
        #: nodes that did not answer in time, and who waits for a word from them
        self._silent: dict[str, asyncio.Task[None]] = {}
        #: for subscriptions, by node
        self._listeners: dict[str, aioredis.Redis] = {}

    async def exchange(self, commands: Sequence[Command], confirm: Command | None) -> list[Any]:
        await self._know_masters()
        answers: list[Any] = [None] * len(commands)
        confirmed: list[Any] = []
        waiting = list(range(len(commands)))
        for _ in range(self.MOVES):
            by_node: dict[str, tuple[ClusterNode, list[int]]] = {}
            for i in waiting:
                node = self._cluster.get_node_from_key(_key(commands[i]))
                assert node is not None
                by_node.setdefault(node.name, (node, []))[1].append(i)
            parts = await asyncio.gather(
                *(
                    self._part(node, [commands[i] for i in indexes], confirm)
                    for node, indexes in by_node.values()
                )
            )
            for (_, indexes), part in zip(by_node.values(), parts, strict=True):
                for i, answer in zip(indexes, part, strict=False):
                    answers[i] = answer
                confirmed += part[len(indexes) :]
            # Such an answer says that nothing was done there.
            waiting = [i for i in waiting if isinstance(answers[i], MovedError)]
            if not waiting:
                break
            self._stale = True
            await self._learn_masters()
        self._stale |= any(isinstance(a, _STALE) for a in answers)
        return answers + confirmed if confirm is not None else answers

    async def _part(
        self, node: ClusterNode, commands: Sequence[Command], confirm: Command | None
    ) -> list[Any]:
        """Of one master. A connection that breaks answers all of them: what was done is not known. One that
        was late is asked for nothing until it answers: what goes to others would wait for it each time."""
        if node.name in self._silent:
            self._stale = True
            return [RedisTimeoutError("it has not answered lately")] * (len(commands) + (confirm is not None))
        batch = [PipelineCommand(i, *c) for i, c in enumerate((*commands, confirm) if confirm else commands)]
        try:
            await node.execute_pipeline(batch)
        except (RedisError, OSError) as error:
            self._stale = True
            self._heed(node, error)
            return [error] * len(batch)
        answers = [command.result for command in batch]
        if any(isinstance(a, (RedisConnectionError, RedisTimeoutError, OSError)) for a in answers):
            self._stale = True
            self._heed(node, *answers)
        return answers

    def _heed(self, node: ClusterNode, *answers: Any) -> None:
        late = any(isinstance(answer, RedisTimeoutError) for answer in answers)
        if late and node.name not in self._silent:
            self._silent[node.name] = asyncio.create_task(self._listen_for(node))

    async def _listen_for(self, node: ClusterNode) -> None:
        """Until it answers, or is none of the cluster's any more."""
        while self._cluster.nodes_manager.nodes_cache.get(node.name) is node:
            with suppress(Exception):  # whatever it is: nothing else would end the silence
                await node.execute_command("PING")
                break
            await asyncio.sleep(self.PAUSE)
        del self._silent[node.name]

    async def _know_masters(self) -> None:
        """Maybe not as of now: while one does not answer, commands to others wait for nothing."""
        now = asyncio.get_running_loop().time()
        if self._cluster._initialize:
            await self._learn_masters()
        elif self._stale and now >= self._look_due and (self._look is None or self._look.done()):
            self._look_due = now + self.PAUSE
            self._look = asyncio.create_task(self._look_again())

    async def _look_again(self) -> None:
        with suppress(RedisError, RedisClusterException, OSError, RuntimeError):
            await self._learn_masters()

    async def _learn_masters(self) -> None:
        """At first and after something has changed."""
        if self._looking is None:
            self._looking = asyncio.Lock()
        async with self._looking:
            if self._cluster._initialize:
                await self._cluster.initialize()
            elif self._stale:
                await self._cluster.nodes_manager.initialize()
            else:
                return
            self._stale = False
            for node in self._cluster.get_nodes():
                node.response_callbacks = {
                    name: parse
                    for name, parse in node.response_callbacks.items()
                    if name.startswith("CLUSTER")
                }

    async def everywhere(self, command: Command) -> list[Any]:
        await self._know_masters()
        parts = await asyncio.gather(
            *(self._part(node, [command], None) for node in self._cluster.get_primaries())
        )
        for (answer,) in parts:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for (answer,) in parts]

    def pubsub(self) -> PubSub:
        """On any node: what is published on one is heard on all."""
        nodes = self._cluster.get_primaries()
        if not nodes:
            raise RedisConnectionError("no node of the cluster is known yet")
        node = nodes[id(asyncio.get_running_loop()) % len(nodes)]
        client = self._listeners.get(node.name)
        if client is None:
            client = aioredis.Redis(host=node.host, port=int(node.port), **self._options)
            client.response_callbacks.clear()
            self._listeners[node.name] = client
        return client.pubsub(ignore_subscribe_messages=True)

    async def close(self) -> None:
        for task in (*self._silent.values(), *([self._look] if self._look else ())):
            task.cancel()
        for client in self._listeners.values():
            await client.aclose()
        await self._cluster.aclose()


def _key(command: Command) -> str:
    at = _KEY_AT.get(str(command[0]), 1)
    # One without a key may go anywhere.
    return str(command[at]) if at < len(command) else ""
