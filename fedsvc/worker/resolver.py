"""Names to addresses that deliveries may go to.

The dialer connects to the very addresses returned here, so that a name cannot be checked as one
address and connected to as another. Lookups run in threads of their own, because the event loop's few
are soon all stuck on the names of dead hosts; they are daemons, because a lookup cannot be cancelled
and must not hold up the end of the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

from fedsvc.worker.addresses import AddressPolicy, AddressRefused

#: each waits, most of the time; a name whose servers are silent holds one for ten seconds or more
THREADS: Final = 64
#: names whose lookup is under way or waits for a thread
MAX_PENDING: Final = 1024
CACHED_NAMES: Final = 10_000
#: of one name and family; an answer can hold thousands, each of which would be kept and connected to
ADDRESSES: Final = 4
#: the operating system tells no TTL; a minute is what most hosts' records allow
TTL_S: Final = 60.0
#: for names that do not exist
NEGATIVE_TTL_S: Final = 10.0

#: that a lookup has open at the same time, at most
_FILES: Final = 4
_NOT_FOUND: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


class NameNotFound(OSError):
    """The name has no address (NXDOMAIN, or no address records)."""


class NameLookupFailed(OSError):
    """Nobody could say whether the name has an address."""


class OutOfFiles(NameLookupFailed):
    """Nobody could be asked: this process may open no more files."""


Found = tuple[str, ...]
Lookup = Callable[[str], Found]


def look_up(host: str) -> Found:
    """The IP addresses of `host`, by the operating system. Blocks.

    Raises NameNotFound or NameLookupFailed. AI_ADDRCONFIG is not asked for: on a machine that has lost
    its network it makes every name look as if it did not exist.
    """
    try:
        infos = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        # The C library, which finds no file and no server then, calls every name unknown.
        kind = OutOfFiles if _no_files_left() else _kind(error)
        raise kind(f"{host}: {error.strerror}") from None
    except UnicodeError:
        raise NameNotFound(f"{host}: not a host name") from None
    except OSError as error:
        kind = OutOfFiles if _no_files_left() else NameLookupFailed
        raise kind(f"{host}: {error.strerror}") from None
    return tuple(dict.fromkeys(str(info[4][0]) for info in infos))


def _kind(error: socket.gaierror) -> type[OSError]:
    return NameNotFound if error.errno in _NOT_FOUND else NameLookupFailed


def _no_files_left() -> bool:
    """Whether there is less than a lookup takes."""
    opened = []
    try:
        for _ in range(_FILES):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return True
    finally:
        for each in opened:
            os.close(each)
    return False


def _first(found: Found) -> Found:
    """As many as are of use, in their order."""
    v4 = [address for address in found if ":" not in address][:ADDRESSES]
    v6 = [address for address in found if ":" in address][:ADDRESSES]
    return tuple(address for address in found if address in v4 or address in v6)


class PolicyResolver:
    """Resolves names within `deadline_s` seconds, and drops addresses that `policy`
    refuses. Answers are cached; concurrent lookups of a name are one. Belongs to one event loop."""

    def __init__(self, policy: AddressPolicy, deadline_s: float, look_up: Lookup = look_up) -> None:
        self._policy = policy
        self._deadline_s = deadline_s
        self._threads = _DaemonThreads(look_up, THREADS)
        self._cache: OrderedDict[str, tuple[float, Found | NameNotFound]] = OrderedDict()
        self._pending: dict[str, asyncio.Task[Found]] = {}
        self._closed = False

    async def resolve(self, host: str, port: int) -> list[str]:
        """Addresses of a name that may be connected to on `port`, in order. Raises NameNotFound,
        NameLookupFailed, or AddressRefused if there is none but such as must not be used."""
        refused: AddressRefused | None = None
        allowed = []
        for address in await self._addresses(host):
            try:
                self._policy.check(address, port)
            except AddressRefused as error:
                refused = error
            else:
                allowed.append(address)
        if not allowed:
            raise refused or NameNotFound(f"{host}: no address")
        return allowed

    async def close(self) -> None:
        self._closed = True
        for task in self._pending.values():
            task.cancel()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        self._threads.close()

    async def _addresses(self, host: str) -> Found:
        loop = asyncio.get_running_loop()
        cached = self._cache.get(host)
        if cached is not None and loop.time() < cached[0]:
            if isinstance(cached[1], NameNotFound):
                raise NameNotFound(*cached[1].args)
            return cached[1]
        task = self._pending.get(host)
        if task is None:
            if len(self._pending) >= MAX_PENDING:
                raise NameLookupFailed(f"{host}: too many lookups under way")
            task = loop.create_task(self._look_up(host))
            self._pending[host] = task
            task.add_done_callback(lambda done: self._forget(host, done))
        try:
            async with asyncio.timeout(self._deadline_s):
                # one caller's end must not end the lookup that others wait for
                return await asyncio.shield(task)
        except TimeoutError:
            raise NameLookupFailed(f"{host}: no answer within {self._deadline_s:g} s") from None

    async def _look_up(self, host: str) -> Found:
        loop = asyncio.get_running_loop()
        job = self._threads.submit(host)
        # who asked has gone by then; what has begun goes on, and serves the next who asks
        give_up = loop.call_later(self._deadline_s, job.cancel)
        try:
            found = _first(await asyncio.wrap_future(job))
        except NameNotFound as error:
            self._remember(host, loop.time() + NEGATIVE_TTL_S, error)
            raise
        except asyncio.CancelledError:
            if self._closed:
                raise
            raise NameLookupFailed(f"{host}: no answer within {self._deadline_s:g} s") from None
        finally:
            give_up.cancel()
        self._remember(host, loop.time() + TTL_S, found)
        return found

    def _remember(self, host: str, until: float, answer: Found | NameNotFound) -> None:
        self._cache[host] = (until, answer)
        self._cache.move_to_end(host)
        if len(self._cache) > CACHED_NAMES:
            self._cache.popitem(last=False)

    def _forget(self, host: str, task: asyncio.Task[Found]) -> None:
        del self._pending[host]
        if not task.cancelled():
            task.exception()  # seen, also when every caller has gone


class _DaemonThreads:
    """At most `limit` threads, started as they are needed, that run `look_up`. The latest job is the first:
    when names that hang keep all of them busy, the oldest have the least time left anyway."""

    def __init__(self, look_up: Lookup, limit: int) -> None:
        self._look_up = look_up
        self._limit = limit
        self._started = 0
        self._idle = threading.Semaphore(0)
        self._jobs: deque[tuple[Future[Found], str] | None] = deque()
        #: at least as many as there are jobs
        self._calls = threading.Semaphore(0)

    def submit(self, host: str) -> Future[Found]:
        self._drop_cancelled()
        future: Future[Found] = Future()
        self._put((future, host))
        if not self._idle.acquire(blocking=False) and self._started < self._limit:
            self._started += 1
            threading.Thread(target=self._run, name=f"resolve-{self._started}", daemon=True).start()
        return future

    def close(self) -> None:
        for _ in range(self._started):
            self._put(None)

    def _put(self, job: tuple[Future[Found], str] | None) -> None:
        self._jobs.append(job)
        self._calls.release()

    def _drop_cancelled(self) -> None:
        """They are the oldest, to which no thread comes while there are others."""
        with suppress(IndexError):  # a thread took the last
            while (oldest := self._jobs[0]) is not None and oldest[0].cancelled():
                self._jobs.popleft()

    def _run(self) -> None:
        while True:
            self._calls.acquire()
            try:
                job = self._jobs.pop()
            except IndexError:
                continue  # it was dropped
            if job is None:
                return
            future, host = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._look_up(host))
                except Exception as error:  # noqa: BLE001  it is the caller's
                    future.set_exception(error)
            del job, future
            self._idle.release()
