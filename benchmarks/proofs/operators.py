"""What operators wait for: lists when there is much to list, a replay of many, figures of a long queue."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from fedsvc_client import DeadLetterFilter, FedsvcClient, HostOrder

from benchmarks.accounting import cpu_seconds
from benchmarks.figures import percentile
from benchmarks.proofs.remotes import address
from benchmarks.proofs.report import report
from benchmarks.proofs.site import Site

HOSTS, EACH, REPLAYED = 10_000, 10, 10_000
CALLS = 200
PENDING, AT_ONCE, ASKED = 1_000_000, 50_000, 1000


def operators() -> bool:
    """Both of what follows."""
    listed = _lists()
    return _figures() and listed


def _figures() -> bool:
    """Figures with 1,000,000 deliveries pending, half of them ready and half scheduled, to 10,000 hosts."""
    with Site(FEDSVC_MAX_FAN_OUT=str(AT_ONCE)) as site:
        later = datetime.now(UTC) + timedelta(days=1)
        for each in range(PENDING // AT_ONCE):
            inboxes = [site.inbox(n % HOSTS, f"/{n // HOSTS}") for n in range(AT_ONCE)]
            options = {"not_before": later} if each % 2 else {}
            site.fan_out(f"https://me.example/p/{each}", inboxes, **options)
        client = site.client
        stats = client.get_queue_stats()
        calls: dict[str, Callable[[], object]] = {
            "GetQueueStats": client.get_queue_stats,
            "GetRetryStats": client.get_retry_stats,
            "GetMemoryStatus": client.get_memory_status,
        }
        rows, worst = [f"{stats.pending:,} pending; adds up: {stats.conserved}"], []
        for name, call in calls.items():
            before = cpu_seconds(site.server.pid)
            took = [_time(call) for _ in range(ASKED)]
            cpu_ms = (cpu_seconds(site.server.pid) - before) * 1000 / ASKED
            worst.append(percentile(took, 0.99))
            p50 = percentile(took, 0.5)
            rows.append(
                f"{name:<18} p50 {p50:6.1f} ms  p99 {worst[-1]:6.1f} ms  longest {max(took):6.1f} ms  "
                f"CPU of the server {cpu_ms:5.2f} ms a call"
            )
    holds = report("operators: figures", rows, "p99 of GetQueueStats, ms", worst[:1], 10.0, worst=True)
    return holds and stats.pending == PENDING and stats.conserved


def _lists() -> bool:
    """Lists at 10,000 hosts and 100,000 dead letters, and a replay of 10,000 of these in one command."""
    with Site(FEDSVC_MAX_FAN_OUT="50000") as site:
        site.start_worker()
        for each in range(EACH):
            inboxes = [site.inbox(n, f"/missing/{each}") for n in range(HOSTS)]
            site.fan_out(f"https://me.example/d/{each}", inboxes)
        site.wait(lambda stats: stats.dead >= HOSTS * EACH, 1200)
        site.stop_workers()
        client = site.client
        one = DeadLetterFilter(host=address(1))
        lists: dict[str, Callable[[], object]] = {
            "dead letters, a page of 100": lambda: client.list_dead_letters(page_size=100),
            "dead letters of one host, a page": lambda: client.list_dead_letters(one),
            "hosts by backlog, 100": lambda: client.list_hosts(order=HostOrder.BACKLOG, page_size=100),
            "hosts by name, some": lambda: client.list_hosts(name_contains="90.7."),
            "a host with its attempts": lambda: client.get_host(address(1)),
        }
        rows, worst = [], []
        for name, call in lists.items():
            took = [_time(call) for _ in range(CALLS)]
            worst.append(percentile(took, 0.99))
            p50 = percentile(took, 0.5)
            rows.append(f"{name:<34} p50 {p50:6.1f} ms  p99 {worst[-1]:6.1f} ms")
        found, pages, seconds = _all_of(client, one)
        rows.append(f"all {found} dead letters of one host      in {pages} pages, {seconds * 1000:.0f} ms")
        begun = time.monotonic()
        command = [sys.executable, "-m", "fedsvc", "dead", "replay", "--all", "--limit", str(REPLAYED)]
        done = subprocess.run(
            [*command, "--json", "--target", site.target],
            check=True, capture_output=True, text=True, timeout=300, env=site.environment,
        )  # fmt: skip
        took_s, operation = time.monotonic() - begun, json.loads(done.stdout)
        stats = client.get_queue_stats()
        rows.append(
            f"replayed {operation['completed']:,} in {took_s:.1f} s; then {stats.dead:,} dead, "
            f"{stats.pending:,} pending of {stats.accepted:,} accepted; adds up: {stats.conserved}"
        )
        exact = stats.conserved and stats.dead == HOSTS * EACH - REPLAYED and stats.pending == REPLAYED
        exact = exact and operation["completed"] == REPLAYED and operation["limit_reached"]
    holds = report("operators: lists", rows, "p99, ms", worst, 100.0, worst=True)
    return holds and exact


def _time(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1000


def _all_of(client: FedsvcClient, chosen: DeadLetterFilter) -> tuple[int, int, float]:
    """Dead letters found, pages it took, seconds."""
    begun, found, pages, token = time.monotonic(), 0, 0, ""
    while True:
        page = client.list_dead_letters(chosen, page_size=100, page_token=token)
        found, pages, token = found + len(page.dead_letters), pages + 1, page.next_page_token
        if not token:
            return found, pages, time.monotonic() - begun
