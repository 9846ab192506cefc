"""What the queue promises, measured: real processes, on loopback, each proof by itself.

    python -m benchmarks.proofs [--server PROGRAM] [PROOF...]

Proofs: isolation, order, priority, fairness, flat, memory, spill, operators; all if none is named.

Prints a table for each and ends with exit code 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import redis

from benchmarks.accounting import cpu_seconds
from benchmarks.figures import percentile
from benchmarks.proofs.operators import operators
from benchmarks.proofs.remotes import address
from benchmarks.proofs.report import report
from benchmarks.proofs.site import KEY_ID, Site, activity

SEED = 20_261_123


def isolation() -> bool:
    """1,000 hosts, of which 100 hang and 100 refuse: what do the others notice?"""
    ratios, rows = [], []
    for _ in range(3):
        p99 = {}
        for bad in (False, True):
            p99[bad], p50 = _healthy_latency(bad)
            rows.append(
                f"{'200 bad hosts' if bad else 'all answer':<16} p50 {p50:7.1f} ms  p99 {p99[bad]:7.1f} ms"
            )
        ratios.append(p99[True] / p99[False])
    return report("isolation: enqueue to POST, 800 healthy hosts, 250/s", rows, "p99 ratio", ratios, 1.25)


def _healthy_latency(bad: bool) -> tuple[float, float]:
    chosen = random.Random(SEED)
    with Site(hanging=100 if bad else 0, FEDSVC_DELIVERY_TIMEOUT="5") as site:
        site.start_worker()
        refusing = {n: f"http://{address(n)}:9/inbox" for n in range(100, 200)} if bad else {}
        sent: dict[str, float] = {}
        begun, number, seconds, rate = time.monotonic(), 0, 20, 250
        with ThreadPoolExecutor(8) as pool:
            while (now := time.monotonic() - begun) < seconds:
                while number < now * rate:
                    target = chosen.randrange(1000)
                    id = f"https://me.example/i/{number}"
                    inbox = refusing.get(target) or site.inbox(target)
                    if target >= 200 and now > 3:  # the first seconds warm up
                        sent[id] = 0.0
                    pool.submit(_queue_timed, site, id, inbox, sent)
                    number += 1
                time.sleep(0.002)
        time.sleep(3.0)  # what is healthy has arrived by then
        arrived = {id: at for _, id, at in site.arrived()}
        missing = [id for id in sent if id not in arrived]
        if missing:
            raise RuntimeError(f"{len(missing)} of {len(sent)} did not arrive")
        took = [arrived[id] - sent[id] for id in sent]
        return percentile(took, 0.99), percentile(took, 0.5)


def _queue_timed(site: Site, id: str, inbox: str, sent: dict[str, float]) -> None:
    now = time.time() * 1000
    if id in sent:
        sent[id] = now
    site.queue(id, inbox, kind="Create")


def order() -> bool:
    """1,000 keys of 10 activities, 20% random 503, three kills of a worker: no inversion."""
    keys, each, hosts = 1000, 10, 50
    with Site(refuse_percent=20, seed=SEED, FEDSVC_RETRY_SCALE="0.002", FEDSVC_LEASE="1") as site:
        worker = site.start_worker()
        kills = 0
        for turn in range(each):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(partial(_batch, site, hosts, turn), range(0, keys, 10)))
            if turn in (3, 5, 7):
                worker.kill()
                worker.wait()
                kills += 1
                worker = site.start_worker()
        stats = site.wait(lambda s: s.pending == 0)
        seen: dict[str, list[int]] = defaultdict(list)
        for _, id, _ in site.arrived():
            key, turn_text = id.rsplit("/", 2)[1:]
            seen[key].append(int(turn_text))
    inversions = repeated = 0
    for turns in seen.values():
        first: list[int] = []
        for turn in turns:
            if turn in first:
                repeated += 1
            else:
                first.append(turn)
        inversions += sum(1 for a, b in pairwise(first) if b < a)
    rows = [f"keys {len(seen)}, arrived {sum(map(len, seen.values()))}, sent twice {repeated}, kills {kills}",
            f"delivered {stats.delivered}, dead {stats.dead}"]  # fmt: skip
    return report("order", rows, "inversions", [float(inversions)], 0.0)


def _batch(site: Site, hosts: int, turn: int, start: int) -> None:
    items = [
        {
            "activity": activity(f"https://me.example/o/{key}/{turn}", "Create", 500),
            "destination": site.inbox(key % hosts),
            "ordering_key": f"key-{key}",
        }
        for key in range(start, start + 10)
    ]
    answers = site.client.queue_activities(items, private_key=site.pem, key_id=KEY_ID)
    if any(answer.error for answer in answers):
        raise RuntimeError(str(answers))


def priority() -> bool:
    """Urgent deliveries beside 100,000 bulk ones, and bulk beside a standing urgent load."""
    hosts, users = 200, 500
    with Site() as site:
        site.start_worker()
        for n in range(hosts):  # every host is known
            site.queue(f"https://me.example/w/{n}", site.inbox(n))
        site.wait(lambda s: s.pending == 0)
        idle = _trickle(site, "idle", hosts)
        inboxes = [site.inbox(n, f"/u/{user}/inbox") for user in range(users) for n in range(hosts)]
        for part in range(0, len(inboxes), 25_000):
            site.fan_out(f"https://me.example/b/{part}", inboxes[part : part + 25_000])
        busy = _trickle(site, "busy", hosts)
        left = site.client.get_queue_stats().pending
    rows = [f"idle  p50 {percentile(idle, 0.5):7.1f} ms  p99 {percentile(idle, 0.99):7.1f} ms",
            f"busy  p50 {percentile(busy, 0.5):7.1f} ms  p99 {percentile(busy, 0.99):7.1f} ms, "
            f"{left} bulk still pending at the end"]  # fmt: skip
    ratio = percentile(busy, 0.99) / percentile(idle, 0.99)
    first = report("priority: urgent, call to POST, beside 100,000 bulk", rows, "p99 ratio", [ratio], 5.0)
    with Site() as site:
        for kind, name in (("Like", "u"), ("Announce", "b")):
            inboxes = [site.inbox(n, f"/u/{user}/inbox") for user in range(150) for n in range(hosts)]
            site.fan_out(f"https://me.example/{name}/1", inboxes, kind=kind)
        site.start_worker()
        site.wait(lambda s: s.delivered >= 15_000)
        arrived = [id.split("/")[3] for _, id, _ in site.arrived()]
    share = arrived.count("b") / len(arrived)
    rows = [f"{arrived.count('u')} urgent and {arrived.count('b')} bulk of the first {len(arrived)}"]
    return (
        report("priority: bulk beside standing urgent load", rows, "1 / share", [1 / share], 10.0) and first
    )


def _trickle(site: Site, name: str, hosts: int) -> list[float]:
    site.arrived()
    sent = {}
    for n in range(400):
        id = f"https://me.example/{name}/{n}"
        sent[id] = time.time() * 1000
        site.queue(id, site.inbox(n % hosts), kind="Follow")
        time.sleep(0.04)
    arrived: dict[str, float] = {}
    until = time.monotonic() + 60
    while not arrived.keys() >= sent.keys():
        if time.monotonic() > until:
            raise RuntimeError(f"{len(sent.keys() - arrived.keys())} urgent deliveries have not arrived")
        time.sleep(0.2)
        arrived |= {id: at for _, id, at in site.arrived()}
    return [arrived[id] - at for id, at in sent.items()]


def fairness() -> bool:
    """An instance has 100,000 bulk deliveries waiting when another brings 100: how many of the first are sent
    before the last of the second?"""
    hosts, users, few = 200, 500, 100
    partitions, window = 16, 512
    with Site(FEDSVC_PARTITIONS=str(partitions), FEDSVC_READY_WINDOW=str(window)) as site:
        site.start_worker()
        for n in range(hosts + few):  # every host is known
            site.queue(f"https://me.example/w/{n}", site.inbox(n))
        site.wait(lambda s: s.pending == 0)
        inboxes = [site.inbox(n, f"/u/{user}/inbox") for user in range(users) for n in range(hosts)]
        for part in range(0, len(inboxes), 25_000):
            site.fan_out(f"https://me.example/b/{part}", inboxes[part : part + 25_000])
        site.arrived()
        theirs = [site.inbox(n) for n in range(hosts, hosts + few)]
        begun, done = time.monotonic(), site.client.get_queue_stats().delivered
        site.fan_out("https://other.example/b", theirs, key_id="https://other.example/u/ada#main-key")
        stats = site.wait(lambda s: not s.origins.get("other.example"))
        took = time.monotonic() - begun
    before = stats.delivered - done - few
    rows = [f"delivered after {took:.1f} s; of the first {before} were sent until then, and "
            f"{stats.origins['me.example']} wait"]  # fmt: skip
    # A window in each partition, then its turns; and what the worker had at that moment.
    limit = float(partitions * window + 2 * few + 512)
    return report("fairness: 100 deliveries beside another's 100,000", rows, "before it", [before], limit)


def flat() -> bool:
    """Cost of a delivery and of GetQueueStats with 10,000 and with 1,000,000 pending, by turns: what else the
    machine does meanwhile both feel."""
    few, many, measured, rounds = 10_000, 1_000_000, 5_000, 5
    cpu: dict[int, list[float]] = {few: [], many: []}
    stats: dict[int, list[float]] = {few: [], many: []}
    site_of = partial(Site, FEDSVC_MAX_FAN_OUT="50000", FEDSVC_HOST_START="8")
    with site_of() as small, site_of() as large:
        sites = {few: small, many: large}
        workers = {pending: site.start_worker() for pending, site in sites.items()}
        for pending, site in sites.items():
            workers[pending].send_signal(signal.SIGSTOP)  # it works when we measure
            _fill(site, pending + rounds * measured)
        ratios = []
        for _ in range(rounds):
            now = {pending: _time_stats(site) for pending, site in sites.items()}
            for pending in sites:
                stats[pending] += now[pending]
        ratios.append(percentile(stats[many], 0.99) / percentile(stats[few], 0.99))
        for _ in range(rounds):
            for pending, site in sites.items():
                worker = workers[pending]
                worker.send_signal(signal.SIGCONT)
                before, done = cpu_seconds(worker.pid), site.client.get_queue_stats().delivered
                after = site.wait_delivered(done + measured).delivered
                cpu[pending].append((cpu_seconds(worker.pid) - before) / (after - done) * 1e6)
                worker.send_signal(signal.SIGSTOP)
        for worker in workers.values():
            worker.kill()
    ratios.append(statistics.median(m / f for m, f in zip(cpu[many], cpu[few], strict=True)))
    rows = [
        f"{n:>9,} pending: worker CPU {statistics.median(cpu[n]):6.0f} us a delivery, "
        f"GetQueueStats p50 {percentile(stats[n], 0.5):5.2f} ms, p99 {percentile(stats[n], 0.99):5.2f} ms"
        for n in (few, many)
    ]
    return report("flat cost", rows, "ratios (stats p99, CPU)", ratios, 1.15, worst=True)


def _fill(site: Site, pending: int) -> None:
    """An activity to 25,000 inboxes on 1,000 hosts, until so many wait."""
    made = 0
    while made < pending:
        inboxes = [site.inbox(n, f"/u/{made}/{user}") for user in range(25) for n in range(1000)]
        made += site.fan_out(f"https://me.example/f/{made}", inboxes[: pending - made])


def _time_stats(site: Site) -> list[float]:
    took = []
    for _ in range(400):
        begun = time.perf_counter()
        site.client.get_queue_stats()
        took.append((time.perf_counter() - begun) * 1000)
    return took


def memory() -> bool:
    """Redis's memory for a 2 KB activity to 10,000 inboxes on as many hosts."""
    with Site() as site, redis.Redis.from_url(site.valkey.url) as client:
        each = []
        for n, kind in enumerate(("Announce", "Create", "Create")):
            before = client.info("memory")["used_memory"]
            inboxes = [f"https://host-{n}-{host}.example/inbox" for host in range(10_000)]
            accepted = site.fan_out(f"https://me.example/m/{n}", inboxes, kind=kind)
            each.append((client.info("memory")["used_memory"] - before) / accepted)
    rows = [f"fan-out {n + 1}: {size:5.0f} bytes a pending delivery" for n, size in enumerate(each)]
    return report("memory", rows, "bytes", each, 256.0, worst=True)


def spill() -> bool:
    """100,000 deliveries to hosts that are down, under pressure, delivered after recovery."""
    deliveries, hosts = 100_000, 20
    with (
        Site(FEDSVC_SPILL_AFTER="1", FEDSVC_RETRY_SCALE="0.05", FEDSVC_RECOVERY_RATE="200") as site,
        redis.Redis.from_url(site.valkey.url) as client,
    ):
        client.config_set("maxmemory", "100mb")
        site.start_worker()
        # an operator has paused them: as good as down, and it ends when we say so
        for n in range(hosts):
            site.pause(address(n))
        refused = 0
        most = 0

        def one(batch: int) -> None:
            nonlocal refused
            items = [
                {"activity": activity(f"https://me.example/s/{n}"), "destination": site.inbox(n % hosts)}
                for n in range(batch, batch + 10)
            ]
            while items:
                answers = site.client.queue_activities(items, private_key=site.pem, key_id=KEY_ID)
                again = [item for item, answer in zip(items, answers, strict=True) if answer.error]
                refused += len(again)
                if again:
                    time.sleep(0.5)
                items = again

        begun = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(one, range(0, deliveries, 10)):
                most = max(most, client.info("memory")["used_memory"]) if random.random() < 0.01 else most
        accepted_s = time.monotonic() - begun
        stats = site.client.get_queue_stats()
        for n in range(hosts):
            site.resume(address(n))
        begun = time.monotonic()
        after = site.wait(lambda s: s.delivered >= deliveries, 600)
        arrived = {id for _, id, _ in site.arrived()}
    rows = [
        f"accepted {stats.accepted} in {accepted_s:.0f} s with maxmemory 100 MB "
        f"({2 * deliveries // 1000} MB of activities); asked to wait {refused} times; "
        f"at most {most / 1e6:.0f} MB used",
        f"delivered {after.delivered} in {time.monotonic() - begun:.0f} s after recovery, dead {after.dead}",
    ]
    return report("spill", rows, "missing", [float(deliveries - len(arrived))], 0.0)


PROOFS: dict[str, Callable[[], bool]] = {
    proof.__name__: proof for proof in (isolation, order, priority, fairness, flat, memory, spill, operators)
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proofs", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="proof", help=", ".join(PROOFS))
    parser.add_argument("--server", type=Path, help="program of the Redis or Valkey server to prove it with")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(PROOFS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    Site.binary = arguments.server
    print(f"seed {SEED}")
    failed = [name for name in arguments.names or PROOFS if not PROOFS[name]()]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
