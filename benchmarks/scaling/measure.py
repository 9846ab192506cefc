"""Measures what the model is driven by: CPU time and memory of each part, on the machine at hand."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from benchmarks.accounting import cpu_seconds, resident_bytes, tree, tree_cpu_seconds
from benchmarks.conditions import Conditions
from benchmarks.contenders import numbers
from benchmarks.load import activity, address, key_id, pem
from benchmarks.processes import Sink, sink
from benchmarks.scaling.model import Costs
from benchmarks.service import Database, Service
from fedsvc.archive.archive import Archive
from fedsvc.archive.engine import create_engine
from fedsvc.archive.migrate import upgrade
from fedsvc.config import Settings
from fedsvc.domain.delivery import Delivery, DeliveryId, DeliveryState, Priority

CALLS: Final = 1_000
WIDE: Final = 10_000
DELIVERIES: Final = 6_000
HOSTS: Final = 200
IDLE_S: Final = 5.0
ROWS: Final = 20_000
#: hosts that share a certificate
PER_CERTIFICATE: Final = 100


@dataclass(frozen=True)
class Accepting:
    server_call: float
    server_delivery: float
    redis_call: float
    redis_accept: float
    pending_bytes: float


def accepting() -> Accepting:
    with Conditions(1).stage() as (service, _):
        call = _calls(service, [f"https://single-{n % HOSTS}.example/inbox" for n in range(CALLS)])
        with redis.Redis.from_url(service.database.url()) as client:
            before = client.info("memory")["used_memory"]
            wide = _used(service)
            for turn in range(3):
                service.fan_out(
                    next(numbers), [f"https://wide-{turn}-{n}.example/inbox" for n in range(WIDE)]
                )
            server, database = (now - then for now, then in zip(_used(service), wide, strict=True))
            used = client.info("memory")["used_memory"] - before
    each = 3 * WIDE
    return Accepting(
        call[0], server / each, max(0.0, call[1] - database / each), database / each, used / each
    )


def _calls(service: Service, inboxes: Sequence[str]) -> tuple[float, float]:
    """CPU seconds of server and Redis for a call with one delivery."""
    for turn in range(2):
        before = _used(service)
        for inbox in inboxes:
            service.client.queue_activity(
                activity(next(numbers)), inbox, private_key=pem("rsa"), key_id=key_id("rsa")
            )
        if turn == 0:
            continue  # parses the key, loads the script
        server, database = (now - then for now, then in zip(_used(service), before, strict=True))
    return server / len(inboxes), database / len(inboxes)


def _used(service: Service) -> tuple[float, float]:
    return cpu_seconds(service.server_pid), service.database.cpu_seconds()


@dataclass(frozen=True)
class Delivering:
    worker_delivery: float
    redis_deliver: float
    finished_bytes: float
    worker_bytes: float
    per_second: float


def delivering() -> Delivering:
    with Conditions(1).stage() as (service, inboxes), redis.Redis.from_url(service.database.url()) as client:
        urls = [f"http://{address(n)}:{inboxes.ports[0]}/inbox" for n in range(HOSTS)]
        with service.worker() as pid:
            _round(service, urls, DELIVERIES // 4)
            before, stats = client.info("memory")["used_memory"], service.client.get_queue_stats()
            cpu, database = tree_cpu_seconds(pid), service.database.cpu_seconds()
            begun = time.monotonic()
            _round(service, urls, DELIVERIES)
            took = time.monotonic() - begun
            cpu, database = tree_cpu_seconds(pid) - cpu, service.database.cpu_seconds() - database
            done = service.client.get_queue_stats().delivered - stats.delivered
            used = client.info("memory")["used_memory"] - before
            resident = max(resident_bytes(one) for one in tree(pid))
    return Delivering(cpu / done, database / done, used / done, resident, done / took)


def _round(service: Service, urls: Sequence[str], deliveries: int) -> None:
    before = service.client.get_queue_stats().delivered
    for _ in range(deliveries // len(urls)):
        service.fan_out(next(numbers), list(urls))
    service.wait(
        lambda s: s.delivered >= before + deliveries // len(urls) * len(urls) and not s.archive_backlog
    )


@dataclass(frozen=True)
class Idle:
    """CPU seconds a second, of nothing to do."""

    redis_one: float
    redis_two: float
    worker: float


def idle() -> Idle:
    with Conditions(1).stage() as (service, _):
        told = []
        for processes in (1, 2):
            with service.worker(processes) as pid:
                service.wait(lambda s, n=processes: s.consumers >= n)  # type: ignore[misc]
                cpu, database = tree_cpu_seconds(pid), service.database.cpu_seconds()
                time.sleep(IDLE_S)
                told.append(
                    (
                        (service.database.cpu_seconds() - database) / IDLE_S,
                        (tree_cpu_seconds(pid) - cpu) / processes / IDLE_S,
                    )
                )
    return Idle(told[0][0], told[1][0], told[1][1])


@dataclass(frozen=True)
class Connecting:
    hosts: int
    deliveries: int
    connections: int
    handshakes: int
    resumed: int
    worker_handshake: float
    connection_bytes: float

    @property
    def per_host(self) -> float:
        return self.handshakes / self.hosts


def connecting(directory: Path, hosts: int, activities: int, worker_delivery: float) -> Connecting:
    """TLS, two worker processes, every host a new one to them."""
    authority, certificates = _certificates(directory, hosts)
    with (
        Database(directory) as database,
        sink(certificates) as inboxes,
        Service(
            directory,
            database,
            FEDSVC_CA_FILE=str(authority),
            FEDSVC_CONNECT_TIMEOUT="60",
            FEDSVC_DELIVERY_TIMEOUT="120",
        ) as service,
        service.worker(2) as pid,
    ):
        service.wait(lambda s: s.consumers >= 2)
        time.sleep(2.0)  # they have found each other
        resident = sum(map(resident_bytes, tree(pid)))
        urls = [f"https://{address(n)}:{inboxes.ports[n // PER_CERTIFICATE]}/inbox" for n in range(hosts)]
        inboxes.expect(hosts * activities)
        cpu = tree_cpu_seconds(pid)
        service.fan_out(next(numbers), urls)
        service.wait(lambda s: s.delivered >= hosts)
        cpu = tree_cpu_seconds(pid) - cpu
        resident = sum(map(resident_bytes, tree(pid))) - resident
        for _ in range(activities - 1):
            service.fan_out(next(numbers), urls)
        _until_all(service, inboxes, hosts * activities)
        told = inboxes.told()
    return Connecting(
        hosts, told["count"], told["connections"], told["handshakes"], told["resumed"],
        max(0.0, cpu / hosts - worker_delivery), resident / hosts,
    )  # fmt: skip


def _until_all(service: Service, inboxes: Sink, count: int) -> None:
    inboxes.reached()
    service.wait(lambda s: s.delivered >= count)


def _certificates(directory: Path, hosts: int) -> tuple[Path, list[Path]]:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)

    def built(name: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
        )

    root = ec.generate_private_key(ec.SECP256R1())
    authority = directory / "authority.pem"
    ca = x509.BasicConstraints(ca=True, path_length=None)
    authority.write_bytes(
        built("authority", "authority", root)
        .add_extension(ca, critical=True)
        .sign(root, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    made = []
    for first in range(0, hosts, PER_CERTIFICATE):
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.IPAddress(ip_address(address(n))) for n in range(first, first + PER_CERTIFICATE)]
        certificate = (
            built("host", "authority", key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(root, hashes.SHA256())
        )
        path = directory / f"host-{first}.pem"
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate.public_bytes(Encoding.PEM)
        )
        made.append(path)
    return authority, made


def archiving(url: str) -> float:
    """Rows a second that the database takes from one worker, in its batches."""
    settings = Settings.from_environment({"DATABASE_URL": url})
    upgrade(settings)

    async def write() -> float:
        archive = Archive(create_engine(settings))
        try:
            begun = time.perf_counter()
            for first in range(0, ROWS, 1000):
                await archive.record([_outcome(n) for n in range(first, first + 1000)])
            return ROWS / (time.perf_counter() - begun)
        finally:
            await archive.close()

    return asyncio.run(write())


def _outcome(number: int) -> Delivery:
    inbox = f"https://host-{number % 5000}.example/inbox"
    return Delivery(
        DeliveryId(number % 16, 1_700_000_000_000_000 + number), DeliveryState.DELIVERED,
        f"https://me.example/activities/{number}", "Announce", "https://me.example/u/ada", inbox,
        f"host-{number % 5000}.example", "me.example", "https://me.example/u/ada#main-key", Priority.BULK,
    )  # fmt: skip


def everything(directory: Path, database: str, hosts: int, activities: int) -> dict[str, Any]:
    """All figures, as the model and the docs need them."""
    delivers = delivering()
    accepts = accepting()
    idles = idle()
    (directory / "tls").mkdir()
    connects = connecting(directory / "tls", hosts, activities, delivers.worker_delivery)
    rows = archiving(database or f"sqlite:///{directory / 'rows.db'}")
    costs = Costs(
        accepts.server_call, accepts.server_delivery, accepts.redis_call, accepts.redis_accept,
        # what was accepted meanwhile is told apart
        max(0.0, delivers.redis_deliver - accepts.redis_accept),
        delivers.worker_delivery, connects.worker_handshake, accepts.pending_bytes,
        delivers.finished_bytes, connects.connection_bytes, delivers.worker_bytes, rows,
    )  # fmt: skip
    return {
        "costs": vars_of(costs),
        "one_worker_per_second": delivers.per_second,
        "idle": vars_of(idles),
        "connecting": {**vars_of(connects), "per_host": connects.per_host},
        "database": database.split(":", 1)[0] or "sqlite",
    }


def vars_of(figures: Any) -> dict[str, float]:
    return {name: getattr(figures, name) for name in figures.__dataclass_fields__}
