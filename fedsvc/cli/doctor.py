"""`fedsvc doctor`: looks for what is set up wrongly, and says how to mend it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from fedsvc.cli.dev_instance import Instance
from fedsvc.cli.findings import MARKS, Finding, failed, ok, warning
from fedsvc.cli.local_checks import local
from fedsvc.cli.output import counted, emit, json_option
from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError, FedsvcError

if TYPE_CHECKING:
    from fedsvc.queue.link import Link

#: seconds for one check
_PATIENCE: Final = 10.0
#: seconds between this machine's clock and Redis's that do no harm
_SKEW: Final = 5.0
_OLDEST: Final = (7, 0)
#: a replica that has all and goes on getting it, in INFO replication
_ONLINE: Final = re.compile(rb"^slave\d+:.*\bstate=online\b", re.MULTILINE)


@click.command()
@click.option("--resolve", "name", default="www.w3.org", show_default=True, help="A name that DNS must know.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Check the `fedsvc dev` that runs on this directory. Where nothing else is set, that on "
    "./fedsvc-data is, if one runs.",
)
@json_option
def doctor(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Check settings, files, Redis, database, keys, time and DNS. Exit code 1 if something is wrong.

    Says of each finding how to mend it. Changes nothing, and may be run at any time, also beside what runs.
    """
    findings = asyncio.run(examine(name, data_dir))
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.grade]}  {finding.check}: {finding.found}")
        if finding.advice:
            lines.append(f"      -> {finding.advice}")
    emit(findings, as_json, "\n".join(lines))
    if wrong := [finding.check for finding in findings if finding.grade == "failed"]:
        raise click.ClickException(f"wrong: {', '.join(dict.fromkeys(wrong))}")


async def examine(name: str, data_dir: Path | None = None) -> list[Finding]:
    """All findings, in the order in which they are best mended. `data_dir`: of a `fedsvc dev`."""
    instance = Instance.named(data_dir) if data_dir is not None else Instance.at_hand()
    if data_dir is not None and instance is None:
        advice = f"start it, fedsvc dev --data-dir {data_dir}, or leave --data-dir out"
        return [failed("fedsvc dev", f"none runs on {data_dir}", advice)]
    # The checks go on with defaults for what is bad.
    settings, problems = Settings.read(**(instance.overrides() if instance else {}))
    findings = [
        failed("settings", str(error), f"correct or unset {error.setting}") for error in problems
    ] or [ok("settings", "all are known and valid")]
    if instance is not None:
        findings.append(ok("fedsvc dev", f"runs on {instance.data_dir}: what follows is about that one"))
    findings += local(settings)
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
    from fedsvc.queue.format import FORMAT, formats_of, too_new
    from fedsvc.queue.keys import Keys
    from fedsvc.queue.server_info import server_info

    info = await server_info(link)
    findings = [ok("Redis", " ".join(filter(None, (info.server, info.version, "answers"))))]
    version = tuple(map(int, re.findall(r"\d+", info.version)[:2]))
    if not version:
        advice = "its provider may tell it: Redis 7 or Valkey is needed"
        findings.append(warning("Redis version", "is not told", advice))
    elif version < _OLDEST:
        findings.append(failed("Redis version", info.version, "upgrade to Redis 7 or Valkey"))
    if not info.master:
        findings.append(failed("Redis role", "is a replica", "point REDIS_URL to the master"))
    if info.policy == "noeviction":
        findings.append(ok("Redis eviction", info.policy))
    else:
        advice = "set maxmemory-policy noeviction: any other forgets deliveries when memory is full"
        findings.append(failed("Redis eviction", info.policy, advice))
    findings.append(await _persistence(settings, link, info.aof_enabled))
    if settings.durability == "replicated":
        findings.append(await _replicas(settings, link))
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
        found = f"this queue was made with {counted(int(recorded), 'partition')}, not {settings.partitions}"
        findings.append(failed("partitions", found, f"set FEDSVC_PARTITIONS to {int(recorded)}"))
    if problem := too_new(await formats_of(link, Keys(settings.namespace))):
        findings.append(failed("data format", problem, "run the newer version, or restore an older backup"))
    else:
        findings.append(ok("data format", str(FORMAT)))
    findings += await _stored_keys(settings, link)
    skew = time.time() - await link.now_ms() / 1000
    if abs(skew) > _SKEW:
        advice = "run an NTP client on both: receivers refuse signatures with a wrong date"
        findings.append(failed("clocks", f"this machine and Redis differ by {skew:+.1f} s", advice))
    else:
        findings.append(ok("clocks", f"differ by {round(skew * 1000):+d} ms"))
    return findings


async def _persistence(settings: Settings, link: Link, aof_enabled: bool) -> Finding:
    from fedsvc.queue.durability import check_durability

    check = "Redis persistence"
    if not aof_enabled:
        advice = "set appendonly yes: without it a restart of Redis forgets deliveries"
        return failed(check, "append-only file is off", advice)
    for told in await link.everywhere("INFO", "persistence"):
        if b"aof_last_write_status:err" in told or b"aof_last_bgrewrite_status:err" in told:
            advice = "look at Redis's log: is its disk full, or not writable?"
            return failed(check, "Redis could not write its append-only file", advice)
    try:
        await check_durability(link, settings)
    except ConfigurationError as error:
        return failed(check, str(error), f"change Redis, or {error.setting}")
    return ok(check, "append-only file is on")


async def _replicas(settings: Settings, link: Link) -> Finding:
    """Without them no call is answered well: each waits for them, in vain."""
    told = await link.everywhere("INFO", "replication")
    online = min((len(_ONLINE.findall(answer)) for answer in told), default=0)
    check, wanted = "Redis replicas", settings.durability_replicas
    if online >= wanted:
        return ok(check, f"{online} online, {wanted} must confirm")
    found = f"{online} online, and FEDSVC_DURABILITY=replicated asks for {wanted}: calls get UNAVAILABLE"
    return failed(check, found, "connect replicas, or lower FEDSVC_DURABILITY_REPLICAS or FEDSVC_DURABILITY")


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
        are = "is" if found.closed == 1 else "are"
        text = f"{found.closed} of {sum(found)} {are} encrypted under a key that is not configured"
        advice = "add the key encryption key of before behind the new one: nothing can be signed with them"
        return [failed(check, text, advice)]
    if found.other:
        are = "is" if found.other == 1 else "are"
        text = f"{found.other} of {sum(found)} {are} not yet under the first key encryption key"
        return [warning(check, text, "leave the old one configured: servers encrypt them anew every hour")]
    return [ok(check, f"{found.current}, all under the first key encryption key")]


async def database(settings: Settings) -> Finding:
    from fedsvc.archive.engine import create_engine
    from fedsvc.archive.revision import check

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
        if engine.dialect.name == "sqlite" and not _writable(str(engine.url.database)):
            found = f"this user cannot write {engine.url.database} and beside it"
            return failed("database", found, "give file and directory to the user that runs fedsvc")
        return ok("database", f"{engine.dialect.name}, migrated")
    except FedsvcError as error:
        return failed("database", str(error), advice)
    finally:
        await engine.dispose()


def _is_file(path: str | None) -> bool:
    return path is not None and Path(path).is_file()


def _writable(path: str) -> bool:
    """SQLite also writes files of its own beside the database's."""
    return os.access(path, os.W_OK) and os.access(Path(path).parent, os.W_OK)


async def dns(name: str) -> Finding:
    """Whether names are resolved; a machine without DNS delivers nothing."""
    try:
        await asyncio.get_running_loop().getaddrinfo(name, 443, type=socket.SOCK_STREAM)
    except OSError as error:
        return failed("DNS", f"{name}: {error.strerror or error}", "check /etc/resolv.conf and the network")
    return ok("DNS", f"resolves {name}")
