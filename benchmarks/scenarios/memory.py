"""What a worker process takes up in memory with 512 deliveries in flight, to hosts that do not answer yet."""

from __future__ import annotations

from benchmarks.accounting import resident_bytes, tree
from benchmarks.conditions import Conditions
from benchmarks.contenders import numbers
from benchmarks.figures import Figure, Section, at_most
from benchmarks.load import BODY_BYTES, address

IN_FLIGHT = 512
_MIB = 2**20


def run(conditions: Conditions) -> Section:
    idle, full, whole = [], [], []
    with conditions.stage(FEDSVC_CONCURRENCY=str(IN_FLIGHT), FEDSVC_DELIVERY_TIMEOUT="60") as (service, sink):
        for _ in range(conditions.rounds):
            urls = [f"http://{address(n)}:{sink.ports[0]}" for n in range(IN_FLIGHT)]
            with service.worker() as pid:
                # it has worked before, and knows all the hosts
                sink.expect(2 * IN_FLIGHT)
                for _ in range(2):
                    service.fan_out(next(numbers), [f"{url}/inbox" for url in urls])
                sink.reached(pid)
                service.wait(lambda stats: stats.pending == 0)
                worker = max(tree(pid), key=resident_bytes)
                idle.append(sum(map(resident_bytes, tree(worker))) / _MIB)
                sink.expect(IN_FLIGHT)
                for url in urls:  # each an activity of its own: nobody shares a body
                    service.fan_out(next(numbers), [f"{url}/hold/inbox"])
                sink.reached(pid)
                if (held := sink.told()["held"]) != IN_FLIGHT:
                    raise RuntimeError(f"{held} in flight instead of {IN_FLIGHT}")
                full.append(sum(map(resident_bytes, tree(worker))) / _MIB)
                whole.append(sum(map(resident_bytes, tree(pid))) / _MIB)
                sink.release()
                service.wait(lambda stats: stats.pending == 0)
    return Section(
        "memory",
        f"Memory of a worker process: {IN_FLIGHT} deliveries of {BODY_BYTES} bytes, each to another host",
        [
            Figure(
                f"worker process with its signing process, {IN_FLIGHT} in flight",
                "MiB",
                full,
                at_most(150),
            ),
            Figure("worker process with its signing process, idle after some work", "MiB", idle),
            Figure(f"with the supervisor, which serves the metrics, {IN_FLIGHT} in flight", "MiB", whole),
        ],
        ["resident memory (VmRSS); pages that processes share are counted with each"],
    )
