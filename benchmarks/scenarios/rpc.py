"""How many QueueActivity calls a server process takes, beside an RPC that does nothing."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

from grpc_health.v1 import health_pb2

from benchmarks.accounting import cpu_seconds
from benchmarks.caller import HOLE
from benchmarks.conditions import Conditions
from benchmarks.figures import Figure, Section, at_least, ratios
from benchmarks.load import activity, compact, key_id, pem
from benchmarks.processes import line_of, process
from benchmarks.service import Service
from fedsvc.v1 import delivery_service_pb2

CONNECTIONS, AT_ONCE = 4, 128
CHECK, QUEUE = "/grpc.health.v1.Health/Check", "/fedsvc.v1.DeliveryService/QueueActivity"


def run(conditions: Conditions) -> Section:
    count = conditions.pick(8_000, 2_000)
    rates: dict[str, list[float]] = {CHECK: [], QUEUE: []}
    server: dict[str, list[float]] = {CHECK: [], QUEUE: []}
    busy: dict[str, list[float]] = {CHECK: [], QUEUE: []}
    callers: list[float] = []
    redis_us: list[float] = []
    with conditions.stage() as (service, _):
        command = [sys.executable, "-m", "benchmarks.caller", service.target, str(CONNECTIONS), str(AT_ONCE)]
        with process(command, service.environment) as caller:
            for path in rates:
                _measure(caller, path, 0, AT_ONCE)  # parses the key, loads the script
            for turn in range(conditions.rounds):
                for path in (CHECK, QUEUE) if turn % 2 == 0 else (QUEUE, CHECK):
                    cpu, redis = cpu_seconds(service.server_pid), service.database.cpu_seconds()
                    told = _measure(caller, path, AT_ONCE + turn * count, count)
                    used = cpu_seconds(service.server_pid) - cpu
                    rates[path].append(count / told["wall"])
                    server[path].append(used / count * 1e6)
                    busy[path].append(used / told["wall"])
                    callers.append(told["cpu"] / told["wall"])
                    if path == QUEUE:
                        redis_us.append((service.database.cpu_seconds() - redis) / count * 1e6)
        _check(service, AT_ONCE + conditions.rounds * count)
    ratio = ratios(rates[QUEUE], rates[CHECK])
    return Section(
        "rpc",
        f"QueueActivity beside health's Check: {count:,} calls each, {AT_ONCE} at a time over {CONNECTIONS} "
        "connections, one server process",
        [
            Figure("QueueActivity per second, to Check's", "x", ratio, at_least(0.5), 2),
            Figure("QueueActivity: calls per second", "/s", rates[QUEUE]),
            Figure("Check: calls per second", "/s", rates[CHECK]),
            Figure("QueueActivity: server CPU per call", "us", server[QUEUE]),
            Figure("Check: server CPU per call", "us", server[CHECK]),
            Figure("QueueActivity: Redis CPU per call", "us", redis_us),
        ],
        [
            f"of a core the server used {max(busy[CHECK]):.0%} for Check and {max(busy[QUEUE]):.0%} for "
            f"QueueActivity, the caller at most {max(callers):.0%}: the server is the limit",
        ],
    )


def _measure(caller: subprocess.Popen[str], path: str, first: int, count: int) -> dict[str, float]:
    job = {"path": path, "first": first, "count": count, "message": base64.b64encode(_message(path)).decode()}
    assert caller.stdin is not None
    caller.stdin.write(json.dumps(job) + "\n")
    caller.stdin.flush()
    told: dict[str, float] = json.loads(line_of(caller))
    if told["answered"] != count:
        raise RuntimeError(f"{path}: {told['answered']} of {count} were answered")
    return told


def _message(path: str) -> bytes:
    if path == CHECK:
        return health_pb2.HealthCheckRequest(service="fedsvc.v1.DeliveryService").SerializeToString()
    key = delivery_service_pb2.SigningKey(key_id=key_id("rsa"), private_key_pem=pem("rsa"))
    body = compact(activity(0)).replace(b"activities/000000000", b"activities/" + HOLE)
    return delivery_service_pb2.QueueActivityRequest(
        activity=body, inbox="https://remote.example/inbox", signing_key=key
    ).SerializeToString()


def _check(service: Service, calls: int) -> None:
    """Every call was a delivery of its own."""
    if (accepted := service.client.get_queue_stats().accepted) != calls:
        raise RuntimeError(f"{accepted} of {calls} calls were accepted")
