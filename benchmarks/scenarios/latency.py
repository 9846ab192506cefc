"""How long a delivery takes from the call to the POST when nothing else is to be done."""

from __future__ import annotations

import random
import time

from benchmarks.conditions import Conditions
from benchmarks.contenders import numbers
from benchmarks.figures import Figure, Section, at_most, percentile
from benchmarks.load import HOSTS, activity, address, key_id, pem

#: seconds between two calls, at most
PAUSE = 0.04
SEED = 20_261_124


def run(conditions: Conditions) -> Section:
    calls = conditions.pick(400, 200)
    p50, p99, accepted = [], [], []
    chosen = random.Random(SEED)
    with conditions.stage() as (service, sink), service.worker():
        sink.expect(HOSTS)
        service.fan_out(next(numbers), [f"http://{address(n)}:{sink.ports[0]}/inbox" for n in range(HOSTS)])
        sink.reached()  # every host is known, every connection there
        service.wait(lambda stats: stats.pending == 0)
        for _ in range(conditions.rounds):
            sent: dict[str, tuple[float, float]] = {}
            sink.expect(calls)
            for n in range(calls):
                path = f"/t/{n}"
                inbox = f"http://{address(n % HOSTS)}:{sink.ports[0]}{path}"
                time.sleep(chosen.random() * PAUSE)
                begun = time.monotonic()
                service.client.queue_activity(
                    activity(next(numbers)), inbox, private_key=pem("rsa"), key_id=key_id("rsa")
                )
                sent[path] = begun, time.monotonic()
            sink.reached()
            came = sink.times()
            took = [(came[path] - begun) * 1000 for path, (begun, _) in sent.items()]
            p50.append(percentile(took, 0.5))
            p99.append(percentile(took, 0.99))
            accepted.append(percentile([(until - begun) * 1000 for begun, until in sent.values()], 0.5))
    return Section(
        "latency",
        f"Latency of an idle system: {calls} calls of QueueActivity, a random moment apart",
        [
            Figure("from the call's beginning to the POST's arrival, p50", "ms", p50, at_most(5), 2),
            Figure("from the call's beginning to the POST's arrival, p99", "ms", p99, at_most(15), 2),
            Figure("the call itself, p50", "ms", accepted, None, 2),
        ],
        ["client, server, Redis, worker and inboxes are processes of their own; RSA-2048, connections kept"],
    )
