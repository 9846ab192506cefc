"""The server, wired together: the only place in `server` that knows all its parts."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, cast

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import REGISTRY

from fedsvc import http_door
from fedsvc.archive.archive import Archive
from fedsvc.archive.archived_log import ArchivedLog
from fedsvc.archive.audit_log import AuditLog
from fedsvc.archive.engine import create_engine
from fedsvc.archive.spill_store import SpillStore
from fedsvc.background import end
from fedsvc.config import Settings
from fedsvc.config_types import Address
from fedsvc.domain.operation import Operation
from fedsvc.errors import ConfigurationError
from fedsvc.handlers.registry import Registry
from fedsvc.logs import leave_out_metadata
from fedsvc.queue.audit_buffer import AuditBuffer
from fedsvc.queue.canceller import Canceller
from fedsvc.queue.cleanup import Cleanup
from fedsvc.queue.dead_letters import DeadLetters
from fedsvc.queue.host_list import HostList
from fedsvc.queue.hosts import Hosts
from fedsvc.queue.key_keeper import KeyKeeper
from fedsvc.queue.key_registry import KeyRegistry
from fedsvc.queue.keys import Keys
from fedsvc.queue.keystore import KeyStore, key_cipher, key_lifetime_s
from fedsvc.queue.link import Link
from fedsvc.queue.memory_usage import MemoryUsage
from fedsvc.queue.operations import Operations
from fedsvc.queue.outcomes import OutcomeLog
from fedsvc.queue.producer import Producer
from fedsvc.queue.reader import Reader
from fedsvc.queue.schedules import Schedules
from fedsvc.queue.stats import StatsReader
from fedsvc.server import http
from fedsvc.server.audit import Audit
from fedsvc.server.auth import Authenticate
from fedsvc.server.dashboard import app as dashboard
from fedsvc.server.dashboard.calls import Calls
from fedsvc.server.dashboard.history import History
from fedsvc.server.door import check_door
from fedsvc.server.health import Health, serve_alone
from fedsvc.server.intake import Intake
from fedsvc.server.interceptors import Observe, Trace
from fedsvc.server.limits import Limits
from fedsvc.server.lookup import Lookup
from fedsvc.server.monitor import Monitor
from fedsvc.server.operation_runner import OperationRunner
from fedsvc.server.places import Places
from fedsvc.server.pressure import Pressure
from fedsvc.server.queue_metrics import QueueMetrics
from fedsvc.server.quota import Quota
from fedsvc.server.reception import Reception
from fedsvc.server.services.audit_trail import AuditTrail
from fedsvc.server.services.dead_letters import DeadLetterDesk, tell_end
from fedsvc.server.services.delivery import DeliveryService
from fedsvc.server.services.figures import Figures
from fedsvc.server.services.host_steering import HostSteering
from fedsvc.server.services.keys import KeyService
from fedsvc.server.services.operations import OperationsService
from fedsvc.server.services.schedules import ScheduleDesk
from fedsvc.server.tls import Certificates
from fedsvc.server.tokens import TokenBook
from fedsvc.server.watch import Watchers
from fedsvc.tracing import Tracing
from fedsvc.v1 import delivery_service_pb2, key_service_pb2, operations_service_pb2
from fedsvc.v1.delivery_service_pb2_grpc import add_DeliveryServiceServicer_to_server
from fedsvc.v1.key_service_pb2_grpc import add_KeyServiceServicer_to_server
from fedsvc.v1.operations_service_pb2_grpc import add_OperationsServiceServicer_to_server

log = structlog.get_logger(__name__)

Status = Callable[[dict[str, Any]], None]
SERVICES: Final = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (delivery_service_pb2, "DeliveryService"),
        (operations_service_pb2, "OperationsService"),
        (key_service_pb2, "KeyService"),
    )
)
#: names by which health is asked for; the empty one stands for all
_TOLD: Final = ("", *SERVICES)
#: seconds that calls under way then get to end
_GRACE: Final = 5.0
_REPORT_EVERY: Final = 1.0
#: bytes that an inbox may take up in a fan-out, on average
_BYTES_PER_INBOX: Final = 512


def run(settings: Settings, *, status: Status | None = None, reflect: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    `status` is called about once a second with `{"ready": bool, "problems": {...}, "grpc": address, "http":
    address}`. Raises ConfigurationError.
    """
    return uvloop.run(Server(settings, status or (lambda _: None), reflect).run())


class Server:
    #: seconds that one which stops still takes calls, so that those who watch its health turn away first
    farewell = 0.25

    def __init__(self, settings: Settings, status: Status, reflect: bool) -> None:
        self._settings = settings
        self._status = status
        self._reflect = reflect
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End in order, as upon SIGTERM."""
        self._stopping.set()

    async def run(self) -> int:
        """Serve until `stop`; returns the exit code. Raises ConfigurationError."""
        settings = self._settings
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)
        leave_out_metadata()
        cipher = key_cipher(settings)
        handlers = Registry.load()
        tracing = Tracing.from_settings(settings, "fedsvc-server")
        async with AsyncExitStack() as stack:
            if tracing is not None:
                stack.push_async_callback(asyncio.to_thread, tracing.close)
            # Of many calls at the same time those that come within two milliseconds go together.
            link = Link.from_settings(settings, busy=1, linger=0.002)
            stack.push_async_callback(link.close)
            engine = create_engine(settings)
            archive = Archive(engine)
            stack.push_async_callback(archive.close)
            keys = Keys(settings.namespace)
            reader = Reader(link, keys, settings)
            producer = Producer(link, keys, settings)
            store = KeyStore(link, keys, cipher, lifetime_s=key_lifetime_s(settings))

            registry = KeyRegistry(link, keys, cipher, settings)
            limits = Limits(settings)
            tokens = TokenBook(settings)
            check_door(settings, tokens)
            places = {
                what: Places(most, f"{what} (FEDSVC_{name})", lambda: tokens.callers < 2)
                for what, most, name in (
                    ("calls", settings.max_calls, "MAX_CALLS"),
                    ("watchers of outcomes", settings.max_watchers, "MAX_WATCHERS"),
                    ("watchers of stats", settings.max_watchers, "MAX_WATCHERS"),
                )
            }
            server = grpc.aio.server(
                interceptors=[
                    Observe(),
                    *([] if tracing is None else [Trace(tracing)]),
                    Authenticate(tokens, limits, Reception(places["calls"], limits.max_fan_out)),
                ],
                options=self._options(),
            )
            pressure = Pressure(settings)
            outcomes = OutcomeLog(link, keys, settings)
            stats = StatsReader(link, keys, settings)
            intake = Intake(settings, producer, handlers, store, registry, limits)
            delivery = DeliveryService(
                settings,
                intake,
                producer,
                store,
                Lookup(reader, archive, SpillStore(engine)),
                Canceller(link, keys, settings),
                pressure,
                Watchers(
                    settings.partitions,
                    places["watchers of outcomes"],
                    outcomes,
                    ArchivedLog(engine),
                    self._stopping,
                ),
                limits,
                Quota(limits, stats),
            )
            add_DeliveryServiceServicer_to_server(delivery, server)
            hosts = Hosts(link, keys, settings)
            audit_log = AuditLog(engine)
            audit = Audit(AuditBuffer(link, keys), audit_log)
            letters, pending = DeadLetters(link, keys, settings), Operations(link, keys)

            async def ended(operation: Operation, completed: int) -> None:
                await tell_end(audit, operation, completed)

            carrier = OperationRunner(pending, letters, ended)
            cleanup = Cleanup(link, outcomes, hosts, settings)
            host_list = HostList(link, keys, settings)
            schedules = Schedules(link, keys)
            operations = OperationsService(
                Figures(
                    link,
                    stats,
                    MemoryUsage(link, keys, settings),
                    cleanup,
                    settings,
                    audit,
                    places["watchers of stats"],
                    self._stopping,
                ),
                HostSteering(hosts, host_list, reader, archive, audit),
                DeadLetterDesk(reader, letters, pending, carrier, audit),
                AuditTrail(audit_log),
                ScheduleDesk(limits, schedules, intake, audit),
            )
            add_OperationsServiceServicer_to_server(cast(Any, operations), server)
            key_service = KeyService(intake, registry, schedules, audit)
            add_KeyServiceServicer_to_server(key_service, server)
            health = Health()
            health_pb2_grpc.add_HealthServicer_to_server(health, server)
            if self._reflect:
                names = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
                reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)

            changed = asyncio.Event()
            monitor = Monitor(settings, link, keys, pressure, lambda _: changed.set())
            await monitor.look()
            await health.tell(dict.fromkeys(_TOLD, monitor.serving))
            grpc_at = self._bind(server)
            await server.start()
            stack.push_async_callback(server.stop, _GRACE)
            if settings.health_listen is not None:
                stack.push_async_callback((await serve_alone(health, settings.health_listen)).stop, None)
            history = History(link, stats, outcomes, settings.partitions)
            calls = Calls(limits, delivery=delivery, operations=operations, keys=key_service)
            pages = dashboard.pages(settings, tokens, calls, history, monitor)
            figures = QueueMetrics(link, stats, host_list, settings)
            runner, http_at = await http_door.listen(
                http.application(monitor, REGISTRY, figures.depth, pages), settings.http_listen
            )
            stack.push_async_callback(runner.cleanup)
            log.info("listening", grpc=str(grpc_at), http=str(http_at), dashboard=bool(pages))

            # What is there now stays: looking through all of it again and again would stop every call.
            gc.collect()
            gc.freeze()
            loops = [
                asyncio.create_task(monitor.run()),
                asyncio.create_task(KeyKeeper(link, keys, cipher, registry).run()),
                asyncio.create_task(audit.run()),
                asyncio.create_task(carrier.run()),
                asyncio.create_task(figures.run(REGISTRY)),
                *([asyncio.create_task(history.run())] if pages else []),
                asyncio.create_task(self._follow(changed, health, monitor)),
                asyncio.create_task(self._report(monitor, grpc_at, http_at)),
                asyncio.create_task(self._stopping.wait()),
            ]
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            log.info("stopping")
            await health.end()
            await asyncio.sleep(self.farewell)
            await health.close()
            await server.stop(_GRACE)
            await end(loops)
            for task in done:
                if not task.cancelled():
                    task.result()  # a loop that ended by an exception takes the server with it
        log.info("stopped")
        return 0

    def _options(self) -> list[tuple[str, Any]]:
        settings = self._settings
        largest = (
            settings.max_activity_bytes * max(settings.max_batch_size, 4)
            + settings.max_fan_out * _BYTES_PER_INBOX
        )
        return [
            ("grpc.max_receive_message_length", largest),
            ("grpc.max_metadata_size", 16_384),
            ("grpc.max_concurrent_streams", settings.max_calls),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.max_connection_age_ms", int(settings.max_connection_age * 1000)),
            ("grpc.max_connection_age_grace_ms", 30_000),
        ]

    def _bind(self, server: grpc.aio.Server) -> Address:
        address = self._settings.listen
        try:
            if self._settings.tls_cert or self._settings.tls_key:
                port = server.add_secure_port(str(address), Certificates(self._settings).credentials())
            else:
                port = server.add_insecure_port(str(address))
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigurationError("FEDSVC_LISTEN", f"cannot listen on {address}")
        return Address(address.host, port)

    async def _follow(self, changed: asyncio.Event, health: Health, monitor: Monitor) -> None:
        while True:
            await changed.wait()
            changed.clear()
            await health.tell(dict.fromkeys(_TOLD, monitor.serving))

    async def _report(self, monitor: Monitor, grpc_at: Address, http_at: Address) -> None:
        while True:
            problems = {"redis": monitor.problem} if monitor.problem else {}
            self._status(
                {
                    "ready": monitor.serving,
                    "problems": problems,
                    "grpc": str(grpc_at),
                    "http": str(http_at),
                }
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(_REPORT_EVERY):
                    await self._stopping.wait()
                    return
