"""Operators at the command line and with the client: hosts, dead letters, the audit, figures."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fedsvc_client import (
    AsyncFedsvcClient,
    DeadLetterFilter,
    FedsvcClient,
    HostState,
    InvalidRequest,
    NotFound,
    Operation,
)
from servers.inbox import InboxServer, accepted
from servers.processes import Fedsvc, ended

KEY_ID = "https://me.example/u/ada#main-key"
SETTINGS = {
    "FEDSVC_ALLOW_HTTP": "true",
    "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
    "FEDSVC_RETRY_SCALE": "0.001",
}
HOSTS = ("127.80.0.1", "127.80.0.2", "127.80.0.3")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("dev")
    listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    with Fedsvc(directory, "dev", "--data-dir", "data", *listen, settings=SETTINGS) as fedsvc:
        yield fedsvc.ready()[0]


def run(target: str, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FEDSVC")}
    environment |= {"FEDSVC_TARGET": target, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "fedsvc", *arguments],
        env=environment, capture_output=True, text=True, timeout=60, input=stdin,
    )  # fmt: skip


def told(target: str, *arguments: str) -> Any:
    """What it prints for programs."""
    done = run(target, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def told_meanwhile(target: str, *arguments: str) -> Any:
    return await asyncio.to_thread(told, target, *arguments)


def activity(number: int, kind: str = "Like") -> dict[str, Any]:
    return {
        "id": f"https://me.example/activities/{kind}-{number}",
        "type": kind,
        "actor": "https://me.example/u/ada",
        "object": "https://other.example/post/1",
    }


async def give_up(
    client: AsyncFedsvcClient, inbox: InboxServer, pem: str, kind: str, count: int
) -> list[str]:
    """So many at each host die of 404. Returns their ids."""

    async def no(host: str, body: bytes) -> web.Response:
        return web.Response(status=404, text="no such inbox")

    inbox.answer = no
    ids = []
    for number in range(count):
        for host in HOSTS:
            # a duplicate of another test's is none of ours
            queued = await client.queue_activity(
                activity(number, kind), inbox.url(host), private_key=pem, key_id=KEY_ID, allow_duplicate=True
            )
            ids.append(queued.delivery_id)
    for id in ids:
        await ended(client, id)
    return ids


async def test_dead_letters_are_found_replayed_and_purged(target: str, rsa_pem: str) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=1)
    async with InboxServer(addresses=HOSTS) as inbox, AsyncFedsvcClient(target) as client:
        ids = await give_up(client, inbox, rsa_pem, "Like", 4)
        await give_up(client, inbox, rsa_pem, "Dislike", 1)
        listed = await told_meanwhile(
            target, "dead", "list", "--type", "Like", "--reason", "not_found", "--since", begun.isoformat()
        )
        assert {letter["delivery_id"] for letter in listed["dead_letters"]} == set(ids)
        none = await told_meanwhile(target, "dead", "list", "--host", HOSTS[0], "--until", "1h")
        assert none["dead_letters"] == []

        none = await told_meanwhile(target, "dead", "replay", "1-1", "--dry-run")
        assert (none["total"], none["failed"]) == (0, 1), "of a dry run that is an answer like any other"
        counted = await told_meanwhile(target, "dead", "replay", "--type", "Like", "--dry-run")
        assert (counted["total"], counted["completed"], counted["done"]) == (12, 0, True)
        inbox.answer = accepted
        inbox.received.clear()
        some = await told_meanwhile(target, "dead", "replay", "--type", "Like", "--limit", "5")
        assert (some["total"], some["completed"], some["limit_reached"]) == (5, 5, True)
        rest = await asyncio.to_thread(run, target, "dead", "replay", "--type", "Like")
        assert (rest.returncode, rest.stdout) == (0, "7 of 7 replayed\n"), rest.stderr
        await inbox.wait_for(12)
        stats = await client.get_queue_stats()
        assert stats.conserved

        refused = await asyncio.to_thread(run, target, "dead", "purge", "--type", "Dislike", stdin="")
        assert (refused.returncode, "give --yes" in refused.stderr) == (2, True)
        page = await client.list_dead_letters(DeadLetterFilter(activity_type="Dislike"))
        purged = await told_meanwhile(
            target, "dead", "purge", page.dead_letters[0].delivery_id, "1-1", "--yes"
        )
        assert (purged["completed"], purged["failed"]) == (1, 1)
        purged = await told_meanwhile(target, "dead", "purge", "--host", page.dead_letters[1].host, "--yes")
        assert purged["filter"]["host"] == page.dead_letters[1].host
        left = await client.list_dead_letters(DeadLetterFilter(activity_type="Dislike"))
        assert len(left.dead_letters) == 1
        operations = (await told_meanwhile(target, "dead", "operations"))["operations"]
        assert [o["kind"] for o in operations[:2]] == ["purge", "purge"]
        assert "goes on" not in (await asyncio.to_thread(run, target, "dead", "operations")).stdout
        audit = await told_meanwhile(target, "audit", "--action", "dead.purge")
        assert {event["principal"] for event in audit["audit_events"]} == {"anybody"}
        assert audit["audit_events"][0]["subject"] == operations[0]["operation_id"]


async def test_the_client_says_which_it_means(target: str) -> None:
    async with AsyncFedsvcClient(target) as client:
        with pytest.raises(InvalidRequest, match="either delivery_ids or a filter"):
            await client.replay_dead_letters()
        with pytest.raises(InvalidRequest, match="'WHIM' is not a reason"):
            await client.list_dead_letters(DeadLetterFilter(reason="WHIM"))
        with pytest.raises(NotFound):
            await client.get_operation("0" * 20)
        operation = await client.purge_dead_letters(filter=DeadLetterFilter(host="nowhere.example"))
        async with asyncio.timeout(20):
            while not operation.done:
                operation = await client.get_operation(operation.operation_id)
        assert isinstance(operation, Operation)
        assert (operation.total, operation.filter) == (0, DeadLetterFilter(host="nowhere.example"))
        assert operation in (await client.list_operations()).operations


async def test_what_became_of_an_activity_is_told_for_every_recipient(target: str, rsa_pem: str) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    about = activity(1, "Announce")
    async with InboxServer(addresses=HOSTS) as inbox, AsyncFedsvcClient(target) as client:
        urls = [inbox.url(host) for host in HOSTS]
        await client.fan_out(about, urls, private_key=rsa_pem, key_id=KEY_ID, not_before=later)
    listed = told(target, "deliveries", "list", about["id"], "--state", "scheduled", "--limit", "2")
    assert listed["summary"] == {"SCHEDULED": 3}
    assert len(listed["deliveries"]) == 2
    rest = told(
        target,
        "deliveries",
        "list",
        about["id"],
        "--page-token",
        listed["next_page_token"],
        "--state",
        "scheduled",
    )
    assert len(rest["deliveries"]) == 1
    shown = run(target, "deliveries", "list", about["id"]).stdout
    assert "3 scheduled" in shown
    assert all(url in shown for url in urls)
    one = rest["deliveries"][0]["delivery_id"]
    assert "state     scheduled" in run(target, "deliveries", "show", one).stdout
    unasked = run(target, "deliveries", "cancel", "--activity", about["id"], stdin="n\n")
    assert (unasked.returncode, "give --yes" in unasked.stderr) == (2, True)
    assert told(target, "deliveries", "cancel", one, "--yes")["cancelled"] == 1
    done = run(target, "deliveries", "cancel", "--activity", about["id"], "--yes")
    assert done.stdout == "2 cancelled, 0 on their way, 1 had ended\n"
    wrong = run(target, "deliveries", "cancel", one, "--host", HOSTS[0])
    assert (wrong.returncode, "give either" in wrong.stderr) == (2, True)


def test_retries_and_memory_are_told(target: str) -> None:
    assert told(target, "stats", "--retries")["retry"] == 0
    retries = run(target, "stats", "--retries").stdout
    assert all(title in retries for title in ("Next due", "By type", "By attempts made", "By last result"))
    assert told(target, "stats", "--memory")["used_bytes"] > 0
    memory = run(target, "stats", "--memory").stdout
    assert all(name in memory for name in ("fragmentation", "maxmemory", "By what it holds"))
    assert run(target, "stats", "--memory", "--watch").returncode == 2


async def test_what_has_had_its_time_is_forgotten_at_once(target: str, rsa_pem: str) -> None:
    async with InboxServer(addresses=HOSTS) as inbox, AsyncFedsvcClient(target) as client:
        await give_up(client, inbox, rsa_pem, "Block", 1)
    freed: dict[str, int] = {}
    async with asyncio.timeout(30):  # what is not archived yet stays
        while freed.get("outcomes", 0) < len(HOSTS):
            told_now = await told_meanwhile(target, "cleanup", "--aggressive")
            for category in told_now["freed"]:
                freed[category["name"]] = freed.get(category["name"], 0) + category["entries"]
    assert freed["dead_letters"] == 0, "their time has not come"
    shown = run(target, "cleanup")
    assert (shown.returncode, "Forgotten; Redis uses " in shown.stdout) == (0, True)
    events = told(target, "audit", "--action", "queue.cleanup")["audit_events"]
    assert len(events) >= 2


async def test_hosts_are_listed_shown_paused_and_limited(target: str, rsa_pem: str) -> None:
    host = HOSTS[1]
    async with InboxServer(addresses=HOSTS) as inbox, AsyncFedsvcClient(target) as client:
        (id, *_) = await give_up(client, inbox, rsa_pem, "Undo", 1)
        dead = await client.get_delivery(id)
    listed = told(target, "hosts", "list", "127.80", "--sort", "name")
    assert [h["host"] for h in listed["hosts"]] == sorted(HOSTS)
    first = told(target, "hosts", "list", "127.80", "--sort", "name", "--limit", "2")
    second = told(
        target, "hosts", "list", "127.80", "--sort", "name", "--page-token", first["next_page_token"]
    )
    assert [h["host"] for h in second["hosts"]] == [sorted(HOSTS)[2]]
    shown = told(target, "hosts", "show", dead.host)
    assert id in [attempt["delivery_id"] for attempt in shown["recent_attempts"]]
    assert "not_found" in run(target, "hosts", "show", dead.host).stdout

    paused = told(target, "hosts", "pause", host, "--reason", "they asked", "--seconds", "600")
    assert (paused["state"], paused["pause_reason"]) == ("PAUSED", "they asked")
    assert "they asked" in run(target, "hosts", "show", host).stdout
    assert host in run(target, "hosts", "list", "--state", "paused").stdout
    assert told(target, "hosts", "resume", host)["state"] != "PAUSED"
    limited = told(target, "hosts", "set", host, "--max-in-flight", "3", "--rate", "0.5")
    assert limited["policy"] == {"max_in_flight": 3, "rate_per_second": 0.5, "burst": 0}
    assert run(target, "hosts", "set", host).returncode == 2
    with FedsvcClient(target) as client:
        found, _ = client.get_host(host)
        assert (found.state, found.policy.max_in_flight) == (HostState.CLOSED, 3)
        assert {e.action for e in client.list_audit_events(page_size=3).audit_events} == {
            "host.pause", "host.resume", "host.policy"
        }  # fmt: skip
        with pytest.raises(InvalidRequest, match="states: 'asleep' is not a state of hosts"):
            client.list_hosts(states=["asleep"])
    reset = told(target, "hosts", "set", host, "--default")
    assert reset["policy"] == {"max_in_flight": 0, "rate_per_second": 0, "burst": 0}


def test_figures_go_on_until_somebody_has_seen_enough(target: str) -> None:
    with FedsvcClient(target) as client:
        with closing(client.watch_queue_stats(0.1)) as watched:  # type: ignore[type-var]
            figures = [next(watched) for _ in range(3)]
        assert all(f.conserved for f in figures)
        assert figures[0].bottleneck == "NONE"
        assert figures[0].read_time != figures[2].read_time
        assert client.get_memory_status().categories
        assert client.get_retry_stats().retry == 0
        cleanup = client.force_cleanup()
        assert {c.name for c in cleanup.freed} >= {"outcomes"}
        assert cleanup.freed_bytes >= 0


def test_stats_are_watched_at_the_command_line(target: str) -> None:
    command = [sys.executable, "-m", "fedsvc", "stats", "--watch", "--json", "--target", target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert all(line["conserved"] for line in lines)


#: by itself, since a process with gRPC in other threads must do nothing between fork and exec
TAKES_THE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def in_a_terminal(target: str, *arguments: str, until: str, then: bytes = b"") -> tuple[int, str]:
    """Exit code and all that a person sees; `then` is typed once `until` is seen."""
    mine, theirs = pty.openpty()
    environment = {
        **os.environ,
        "FEDSVC_TARGET": target,
        "COLUMNS": "120",
        "LINES": "60",
        "TERM": "xterm-256color",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", TAKES_THE_TERMINAL, sys.executable, "-m", "fedsvc", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    try:
        while True:
            ready, _, _ = select.select([mine], [], [], 30)
            assert ready, seen
            try:
                seen += os.read(mine, 65_536)
            except OSError:  # it has ended
                break
            if until.encode() in seen and then:
                os.write(mine, then)
                then = b""
        return process.wait(20), seen.decode()
    finally:
        process.kill()
        process.wait()
        os.close(mine)


def test_a_live_view_fills_the_terminal_until_ctrl_c(target: str) -> None:
    code, seen = in_a_terminal(target, "stats", "--watch", until="adds up", then=b"\x03")
    assert code == 0
    assert "\x1b[?1049h" in seen, "a screen of its own"
    assert seen.rstrip().endswith("\x1b[?25h") or "\x1b[?1049l" in seen, "and the terminal as it was"
    assert "held up by" in seen


async def test_a_purge_asks_and_shows_how_far_it_is(target: str, rsa_pem: str) -> None:
    async with InboxServer(addresses=HOSTS) as inbox, AsyncFedsvcClient(target) as client:
        await give_up(client, inbox, rsa_pem, "Flag", 2)
    arguments = ("dead", "purge", "--type", "Flag")
    code, seen = await asyncio.to_thread(
        in_a_terminal, target, *arguments, until="Remove 6 dead letters for good?", then=b"y\n"
    )
    assert code == 0
    assert "6 of 6 purged" in seen
    bar = seen.index("purge", seen.index("for good?"))
    assert "0:00:0" in seen[bar:], "a bar with the time it took"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("dead", "replay"), 2, "give DELIVERY_IDS, a filter, or --all"),
        (("dead", "replay", "1-1", "--all"), 2, "either DELIVERY_IDS or a filter"),
        (("dead", "replay", "--all", "--host", "a.example"), 2, "--all goes without a filter"),
        (("dead", "replay", "x"), 1, "fedsvc: delivery_ids[0]: not a delivery id"),
        (("dead", "list", "--reason", "whim"), 2, "'not_found', 'gone'"),
        (("dead", "replay", "1-1"), 1, "fedsvc: 1-1 is no dead letter\n"),
        (
            ("dead", "replay", "1-1", "1-2", "1-1", "--json"),
            1,
            "fedsvc: none of these 2 deliveries is a dead",
        ),
        (("dead", "purge", "1-1", "--yes"), 1, "fedsvc: 1-1 is no dead letter\n"),
        (("dead", "purge", "1-1"), 2, "give --yes: nobody can be asked here"),
        (("deliveries", "cancel", "1-1"), 2, "give --yes: nobody can be asked here"),
        (("dead", "list", "--since", "yesterday"), 2, "neither a time in ISO 8601 nor an age"),
        (("hosts", "show", "nowhere.example"), 1, "fedsvc: nothing was ever sent to nowhere.example"),
        (("hosts", "set", "a b", "--rate", "1"), 1, "fedsvc: host: "),
        (("hosts", "set", "a.example"), 2, "give --max-in-flight, --rate or --burst, or --default alone"),
        (("hosts", "set", "a.example", "--burst", "0", "--default"), 2, "or --default alone"),
        (("hosts", "set", "a.example", "--rate", "inf"), 2, "--rate"),
        (("hosts", "pause", "a.example", "--seconds", "0"), 2, "--seconds"),
        (("hosts", "pause", "a.example", "--seconds", "nan"), 2, "--seconds"),
        (("hosts", "pause", "a.example", "--seconds", "1e300"), 2, "--seconds"),
        (("schedules", "create", "x", "--task", "cleanup", "--interval", "nan"), 2, "--interval"),
        (("worker", "--processes", "0"), 2, "--processes"),
        (("worker", "--processes", "257"), 2, "--processes"),
    ],
)
def test_what_is_called_wrongly_is_said(
    target: str, arguments: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    done = run(target, *arguments)
    assert done.returncode == code, done
    assert said in done.stderr
    assert "Traceback" not in done.stderr
