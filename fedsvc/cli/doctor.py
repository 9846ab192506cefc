"""`fedsvc doctor`: looks for what is set up wrongly, and says how to mend it."""

from __future__ import annotations

import asyncio
import socket
import stat
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from fedsvc.cli.output import emit
from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError, FedsvcError

if TYPE_CHECKING:
    from fedsvc.queue.link import Link

#: seconds for one check
_PATIENCE: Final = 10.0
#: seconds between this machine's clock and Redis's that do no harm
_SKEW: Final = 5.0
_OLDEST: Final = (7, 0)

Grade = Literal["ok", "warning", "failed"]
_MARKS: Final = {"ok": "ok  ", "warning": "warn", "failed": "FAIL"}


@dataclass(frozen=True)
class Finding:
    check: str
    grade: Grade
    found: str
    #: how to mend it
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def failed(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "failed", found, advice)


def warning(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "warning", found, advice)


@click.command()
@click.option("--resolve", "name", default="www.w3.org", show_default=True, help="A name that DNS must know.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(name: str, as_json: bool) -> int:
    """Check settings, Redis, database, keys, time and DNS. Exit code 1 if something is wrong."""
    findings = asyncio.run(examine(name))
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.grade]}  {finding.check}: {finding.found}")
        if finding.advice:
            lines.append(f"      -> {finding.advice}")
    emit(findings, as_json, "\n".join(lines))
    return 1 if any(finding.grade == "failed" for finding in findings) else 0


async def examine(name: str) -> list[Finding]:
    """All findings, in the order in which they are best mended."""
    try:
        settings = Settings.from_environment()
    except ConfigurationError as error:
        return [failed("settings", str(error), f"correct or unset {error.setting}")]
    findings = [ok("settings", "all are known and valid"), keys(settings), callers(settings)]
    findings += await redis(settings)
    findings.append(await _bounded("database", database(settings)))
    findings.append(await _bounded("DNS", dns(name)))
    return findings


async def _bounded(check: str, work: Coroutine[None, None, Finding]) -> Finding:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await work
    except TimeoutError:
        return failed(check, f"no answer within {_PATIENCE:.0f} s", "check address and network")


def keys(settings: Settings) -> Finding:
    from fedsvc.queue.keystore import key_cipher

    check = "key encryption keys"
    try:
        cipher = key_cipher(settings)
    except ConfigurationError as error:
        advice = (
            "make one with: head -c 32 /dev/urandom | base64, and set FEDSVC_KEY_ENCRYPTION_KEYS or _FILE"
        )
        return failed(check, str(error), advice)
    file = settings.key_encryption_keys_file
    if file and not settings.key_encryption_keys.get_secret_value():
        mode = stat.S_IMODE(Path(file).stat().st_mode)
        if mode & 0o077:
            return failed(check, f"others can read {file} (mode {mode:o})", f"chmod 600 {file}")
    return ok(check, repr(cipher))


def callers(settings: Settings) -> Finding:
    from fedsvc.server.door import check_door
    from fedsvc.server.limits import Limits
    from fedsvc.server.tls import Certificates
    from fedsvc.server.tokens import TokenBook

    check = "callers"
    try:
        tokens = TokenBook(settings)
        Limits(settings)
        check_door(settings, tokens)
        if settings.tls_cert or settings.tls_key:
            Certificates(settings).credentials()
    except ConfigurationError as error:
        return failed(check, str(error), f"correct {error.setting}; `fedsvc tokens new` makes a token")
    if tokens.open and not settings.insecure:
        return ok(check, f"all of this machine may call, on {settings.listen}")
    if tokens.open or (not settings.tls_cert and not settings.listen.local):
        advice = "keep it where something else says who may call, and encrypts: a service mesh, a tunnel"
        return warning(check, f"--insecure: whoever reaches {settings.listen} may call", advice)
    return ok(check, f"{tokens.callers} have tokens")


async def redis(settings: Settings) -> list[Finding]:
    from fedsvc.queue.link import Link

    try:
        link = Link.from_settings(settings)
    except ConfigurationError as error:
        return [failed("Redis", str(error), "set REDIS_URL to redis://, rediss:// or unix://")]
    try:
        async with asyncio.timeout(_PATIENCE):
            return await _examine_redis(settings, link)
    except (FedsvcError, TimeoutError) as error:
        problem = str(error) or "no answer in time"
        return [failed("Redis", problem, "start it, or correct REDIS_URL (address, password, TLS)")]
    finally:
        await link.close()


async def _examine_redis(settings: Settings, link: Link) -> list[Finding]:
    from fedsvc.queue.keys import Keys
    from fedsvc.queue.server_info import server_info

    info = await server_info(link)
    findings = [ok("Redis", f"{info.server} {info.version} answers")]
    version = tuple(int(part) for part in info.version.split(".")[:2])
    if version < _OLDEST:
        findings.append(failed("Redis version", info.version, "upgrade to Redis 7 or Valkey"))
    if not info.master:
        findings.append(failed("Redis role", "is a replica", "point REDIS_URL to the master"))
    if info.policy == "noeviction":
        findings.append(ok("Redis eviction", info.policy))
    else:
        advice = "set maxmemory-policy noeviction: any other forgets deliveries when memory is full"
        findings.append(failed("Redis eviction", info.policy, advice))
    if info.aof_enabled:
        findings.append(ok("Redis persistence", "append-only file is on"))
    else:
        advice = "set appendonly yes: without it a restart of Redis forgets deliveries"
        findings.append(failed("Redis persistence", "append-only file is off", advice))
    if not info.max_memory:
        advice = "set maxmemory below what the machine has, so that Redis refuses instead of being killed"
        findings.append(warning("Redis memory", "has no limit", advice))
    # Read only: the first server or worker writes it down, and then it is fixed.
    recorded = await link.call("GET", Keys(settings.namespace).partitions)
    if recorded is None:
        findings.append(ok("partitions", f"{settings.partitions}, from the first start on"))
    elif int(recorded) == settings.partitions:
        findings.append(ok("partitions", str(settings.partitions)))
    else:
        found = f"this queue was made with {int(recorded)} partitions, not {settings.partitions}"
        findings.append(failed("partitions", found, f"set FEDSVC_PARTITIONS to {int(recorded)}"))
    findings += await _stored_keys(settings, link)
    seconds, microseconds = await link.call("TIME")
    skew = time.time() - int(seconds) - int(microseconds) / 1e6
    if abs(skew) > _SKEW:
        advice = "run an NTP client on both: receivers refuse signatures with a wrong date"
        findings.append(failed("clocks", f"this machine and Redis differ by {skew:+.1f} s", advice))
    else:
        findings.append(ok("clocks", f"differ by {skew * 1000:+.0f} ms"))
    return findings


async def _stored_keys(settings: Settings, link: Link) -> list[Finding]:
    from fedsvc.queue.key_keeper import KeyKeeper
    from fedsvc.queue.key_registry import KeyRegistry
    from fedsvc.queue.keys import Keys
    from fedsvc.queue.keystore import key_cipher

    try:
        cipher = key_cipher(settings)
    except ConfigurationError:
        return []  # told already
    names = Keys(settings.namespace)
    keeper = KeyKeeper(link, names, cipher, KeyRegistry(link, names, cipher, settings))
    found = await keeper.census()
    check = "stored keys"
    if found.closed:
        text = f"{found.closed} of {sum(found)} are encrypted under a key that is not configured"
        advice = "add the key encryption key of before behind the new one: nothing can be signed with them"
        return [failed(check, text, advice)]
    if found.other:
        text = f"{found.other} of {sum(found)} are not yet under the first key encryption key"
        return [warning(check, text, "leave the old one configured: servers encrypt them anew every hour")]
    return [ok(check, f"{found.current}, all under the first key encryption key")]


async def database(settings: Settings) -> Finding:
    from fedsvc.archive.engine import create_engine
    from fedsvc.archive.migrate import check

    try:
        engine = create_engine(settings)
    except ConfigurationError as error:
        return failed("database", str(error), "set DATABASE_URL to sqlite:///PATH or postgresql://...")
    advice = "check DATABASE_URL, then run: fedsvc migrate"
    try:
        # To connect would make the file.
        if engine.dialect.name == "sqlite" and not _is_file(engine.url.database):
            return failed("database", f"there is no {engine.url.database}", advice)
        await check(engine)
        return ok("database", f"{engine.dialect.name}, migrated")
    except FedsvcError as error:
        return failed("database", str(error), advice)
    finally:
        await engine.dispose()


def _is_file(path: str | None) -> bool:
    return path is not None and Path(path).is_file()


async def dns(name: str) -> Finding:
    """Whether names are resolved; a machine without DNS delivers nothing."""
    try:
        await asyncio.get_running_loop().getaddrinfo(name, 443, type=socket.SOCK_STREAM)
    except OSError as error:
        return failed("DNS", f"{name}: {error.strerror or error}", "check /etc/resolv.conf and the network")
    return ok("DNS", f"resolves {name}")
