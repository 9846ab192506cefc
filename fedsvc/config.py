"""Settings: one object, read from the environment, every field described.

The reference page is generated from here. An unknown `FEDSVC_` variable or a bad value is a
`ConfigurationError` that names it, so that a typing error never becomes a silent default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, SecretStr

from fedsvc import __version__
from fedsvc.config_files import read_setting
from fedsvc.config_reading import FromEnvironment
from fedsvc.config_types import (
    Address,
    Listen,
    LogLevel,
    Names,
    Networks,
    OptionalListen,
    Ports,
    Seconds,
    WholeSeconds,
)
from fedsvc.errors import ConfigurationError


class Settings(FromEnvironment):
    """All of fedsvc's settings. Immutable; share it freely."""

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="The queue, Redis 7+ or Valkey: redis://, rediss:// (TLS), unix://, "
        "redis+sentinel://HOST:PORT,.../SERVICE or redis+cluster://HOST:PORT,...",
    )
    database_url: str = Field(
        "sqlite:///fedsvc.db",
        description="The archive: sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME.",
    )
    redis_url_file: str = Field("", description="File with that URL, instead of REDIS_URL; read at start.")
    database_url_file: str = Field("", description="File with that URL, instead of DATABASE_URL.")
    max_retry_duration: WholeSeconds = Field(
        172_800, gt=0, description="Seconds from its acceptance past which no delivery lives."
    )
    task_ttl: WholeSeconds = Field(
        86_400,
        gt=0,
        description="Seconds for which completed deliveries stay readable and known as duplicates.",
    )
    max_batch_size: int = Field(10, ge=1, le=1000, description="Most activities in one QueueActivities call.")

    listen: Listen = Field(
        Address("127.0.0.1", 50051), description="Where the server speaks gRPC; port 0 picks a free one."
    )
    http_listen: Listen = Field(
        Address("127.0.0.1", 8080),
        description="Where a server or worker answers /metrics, /healthz and /readyz, and a server shows its "
        "dashboard; port 0: a free one.",
    )
    health_listen: OptionalListen = Field(
        None,
        description="Where a server speaks the gRPC health service alone, without TLS, for probes that know "
        "none; empty: nowhere.",
    )
    max_connection_age: float = Field(
        600.0,
        ge=1,
        le=86_400,
        description="Seconds after which a server has a connection made anew: callers find new servers so.",
    )
    dashboard: bool = Field(
        True,
        description="Serve the operators' dashboard on FEDSVC_HTTP_LISTEN. Without tokens it is only served "
        "where nobody but this machine reaches it, or with --insecure.",
    )
    dashboard_hosts: Names = Field(
        (),
        description="Names by which browsers reach the dashboard, comma-separated. Addresses and localhost "
        "are always taken; without tokens no other name is, with tokens all are as long as this is empty.",
    )
    dashboard_session: int = Field(
        43_200, ge=60, le=2_592_000, description="Seconds after which the dashboard asks for the token again."
    )
    target: str = Field("", description="The server that the command line calls; FEDSVC_LISTEN when empty.")
    namespace: str = Field(
        "fedsvc", pattern=r"^[a-z][a-z0-9_-]{0,31}$", description="First part of every key in Redis."
    )
    partitions: int = Field(
        16,
        ge=1,
        le=1024,
        description="Parts that the queue is split into by destination host; fixed at first start.",
    )
    ready_window: int = Field(
        512,
        ge=1,
        le=10_000,
        description="Deliveries of one priority and partition that wait for a worker in the order in which "
        "they came; of what is more, origins take turns.",
    )
    processes: int = Field(1, ge=1, le=256, description="Worker processes that `fedsvc worker` runs.")
    concurrency: int = Field(
        256,
        ge=1,
        le=10_000,
        description="Deliveries that one worker process works on at once. Those that wait for an answer for "
        "more than a second do not count, up to four times as many.",
    )
    host_concurrency: int = Field(
        8, ge=1, le=1000, description="Deliveries in flight to one host, at most, from all workers together."
    )
    host_start: int = Field(
        1, ge=1, le=1000, description="Deliveries in flight to a host that was not reached yet, at most."
    )
    host_rate: float = Field(
        1000.0, ge=0, le=1e6, description="Deliveries per second to one host, at most; 0 for no limit."
    )
    host_burst: float = Field(
        2000.0, ge=1, le=1e6, description="Deliveries that a host may get at once after a rest."
    )
    circuit_failures: int = Field(
        5, ge=1, le=1000, description="Failures in a row after which nothing but probes goes to a host."
    )
    circuit_first_probe: float = Field(
        30.0,
        gt=0,
        le=86_400,
        description="Seconds until a failing host is probed; doubles with each probe.",
    )
    circuit_longest_probe: float = Field(
        1800.0, gt=0, le=604_800, description="Seconds between two probes of a host, at most."
    )
    signature_memory: Seconds = Field(
        604_800.0,
        ge=0,
        description="Seconds for which the form of signature that a host took is remembered; then the first "
        "form is tried again.",
    )
    host_down_after: Seconds = Field(
        86_400.0, gt=0, description="Seconds of failing after which a host counts as down (event HOST_DOWN)."
    )
    spill_after: Seconds = Field(
        600.0, ge=0, description="Seconds that a host must have failed before its backlog may move to SQL."
    )
    recovery_rate: float = Field(
        10.0, gt=0, le=1e6, description="Deliveries per second with which a host's backlog begins to be sent."
    )
    recovery_doubling: float = Field(
        5.0, gt=0, le=3600, description="Seconds in which that rate doubles, up to the host's own limits."
    )
    sign_processes: int = Field(
        1, ge=1, le=16,
        description="Processes that sign beside each worker process, at most, started when there is much to "
        "sign: one makes some 3,000 RSA-2048 signatures a second in each of its threads and takes 28 MB.",
    )  # fmt: skip
    sign_threads: int = Field(
        2, ge=1, le=64, description="Threads of each of these processes, each of which can use a core.",
    )  # fmt: skip
    key_cache_size: int = Field(4096, ge=1, description="Parsed private keys that a process keeps, at most.")
    message_cache_bytes: int = Field(
        67_108_864, ge=1_048_576, description="Bytes of activities that a worker process keeps, about."
    )

    allow_http: bool = Field(
        False, description="Accept http inboxes too. For tests and closed networks only."
    )
    allowed_cidrs: Networks = Field(
        (), description="Networks to deliver to beside public addresses, on any port; comma-separated."
    )
    allowed_ports: Ports = Field(frozenset({443}), description="Ports to deliver to at public addresses.")
    ca_file: str = Field("", description="PEM file of further certificate authorities to trust.")
    connect_timeout: float = Field(
        5.0, gt=0, le=300, description="Seconds to connect, TLS handshake included."
    )
    delivery_timeout: float = Field(
        15.0,
        gt=0,
        le=300,
        description="Seconds for one whole exchange with an inbox; no less than FEDSVC_CONNECT_TIMEOUT.",
    )
    user_agent: str = Field(
        f"fedsvc/{__version__}", pattern=r"^[\x20-\x7e]{1,256}$", description="User-Agent of deliveries."
    )
    retry_scale: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="Multiplies the first and longest delays of all retry policies, the intervals of "
        "circuits, FEDSVC_RECOVERY_DOUBLING and the day that a name which does not exist is given.",
    )

    max_activity_bytes: int = Field(
        1_048_576, ge=1024, le=16_777_216, description="Largest activity, in bytes."
    )
    max_fan_out: int = Field(
        50_000, ge=1, le=1_000_000, description="Most inboxes in one FanOutActivity call."
    )
    max_watchers: int = Field(
        32,
        ge=0,
        le=10_000,
        description="WatchOutcomes streams of one server process at a time, at most, and as many of "
        "WatchQueueStats; of one caller half as many if there are tokens of others.",
    )
    request_id_ttl: WholeSeconds = Field(
        3600, ge=60, description="Seconds for which a repeated request id gets the first answer."
    )
    outcome_retention: WholeSeconds = Field(
        3600, ge=1, description="Seconds for which archived outcomes stay in Redis beside the archive."
    )
    archive_retention: int = Field(
        7_776_000,
        ge=60,
        le=3_153_600_000,
        description="Seconds for which the archive keeps deliveries that were delivered, cancelled, "
        "superseded or expired.",
    )
    archive_dead_retention: int = Field(
        31_536_000,
        ge=60,
        le=3_153_600_000,
        description="Seconds for which the archive keeps dead letters, purged ones too.",
    )
    audit_retention: int = Field(
        31_536_000, ge=60, le=3_153_600_000, description="Seconds for which audit events are kept."
    )

    dead_letter_retention: WholeSeconds = Field(
        2_592_000, ge=60, description="Seconds for which dead letters stay in Redis, to be replayed."
    )
    memory_warning: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Share of Redis's maxmemory from which on backlogs of hosts that are down move to SQL; "
        "below FEDSVC_MEMORY_CRITICAL.",
    )
    memory_critical: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of Redis's maxmemory from which on new bulk deliveries are refused, later all.",
    )

    key_encryption_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys (32 bytes, base64 or hex, comma-separated) that encrypt stored private keys; "
        "the first encrypts, all decrypt.",
    )
    key_encryption_keys_file: str = Field(
        "",
        description="File with the key encryption keys, instead of FEDSVC_KEY_ENCRYPTION_KEYS; read again "
        "when it changes.",
    )

    tokens: SecretStr = Field(
        SecretStr(""),
        description="Who may call: NAME:SCOPES:ORIGINS:SHA256 of the token in hex, separated by commas or "
        "white space; scopes (deliver, operate, keys) and origins (hosts of key ids, * for all) joined by +. "
        "`fedsvc tokens new` makes one. Empty: everybody who can connect.",
    )
    tokens_file: str = Field(
        "", description="File with the tokens, instead of FEDSVC_TOKENS; read again when it changes."
    )
    tls_cert: str = Field(
        "", description="PEM file of the server's certificate and its chain; read again when it changes."
    )
    tls_key: str = Field("", description="PEM file of the certificate's private key.")
    tls_client_ca: str = Field(
        "", description="PEM file of authorities: only clients that show a certificate of theirs may connect."
    )
    insecure: bool = Field(
        False, description="Listen beyond this machine without tokens or TLS: something else guards the door."
    )
    token: SecretStr = Field(SecretStr(""), description="Token that the command line shows the server.")
    token_file: str = Field("", description="File with that token, instead of FEDSVC_TOKEN.")
    tls_ca: str = Field(
        "", description="PEM file of authorities that the command line trusts the server by; turns TLS on."
    )

    caller_calls: float = Field(
        0.0, ge=0, le=1e6, description="Calls per second of one caller to one server process; 0 for no limit."
    )
    caller_rate: float = Field(
        0.0,
        ge=0,
        le=1e7,
        description="Deliveries per second that one server process accepts of one caller; 0 for no limit.",
    )
    origin_rate: float = Field(
        0.0,
        ge=0,
        le=1e7,
        description="Deliveries per second that one server process accepts of one origin; 0 for no limit.",
    )
    origin_backlog: int = Field(
        0,
        ge=0,
        description="Deliveries of one origin that may be pending in the whole queue; beyond that its calls "
        "are refused (RESOURCE_EXHAUSTED, ORIGIN_BACKLOG). Server processes learn of each other's deliveries "
        "within a second. 0 for no limit.",
    )
    caller_backlog: int = Field(
        0,
        ge=0,
        description="Deliveries that may be pending of all origins that a caller may sign for, together; "
        "beyond that its calls are refused (RESOURCE_EXHAUSTED, CALLER_BACKLOG). 0 for no limit.",
    )
    limits: str = Field(
        "",
        description="Limits of single callers (NAME) and origins (@HOST) instead of the general ones: "
        "NAME:calls=..:rate=..:bytes=..:fan_out=..:backlog=.. and @HOST:rate=..:bytes=..:backlog=.., "
        "separated by commas or white space.",
    )
    max_calls: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Calls that one server process works on at a time, at most; of one caller half as many "
        "if there are tokens of others.",
    )

    redis_timeout: float = Field(5.0, gt=0, le=300, description="Seconds within which Redis must answer.")
    durability: Literal["memory", "fsync", "replicated"] = Field(
        "memory",
        description="When a call is answered: once Redis has the work in memory, once it is on its disk, or "
        "once replicas have it.",
    )
    durability_replicas: int = Field(
        1, ge=1, le=16, description="Replicas that must have it, for FEDSVC_DURABILITY=replicated."
    )
    lease: float = Field(
        15.0,
        ge=0.5,
        le=3600,
        description="Seconds without a heartbeat after which a worker's deliveries are taken over.",
    )
    shutdown_grace: float = Field(
        30.0, ge=0, le=3600, description="Seconds that a stopping worker gives deliveries to finish."
    )
    log_level: LogLevel = Field("info", description="Least level that is logged.")
    log_format: Literal["json", "console"] = Field("json", description="How log lines look.")
    log_deliveries: bool = Field(
        False,
        description="Log every attempt and every end of a delivery at level info; otherwise at debug. Dead "
        "letters are logged in any case.",
    )
    tracing: bool = Field(
        False,
        description="Trace calls and deliveries by OpenTelemetry, which the extra `otel` installs; where to, "
        "and how much, the standard OTEL_ variables say.",
    )

    @property
    def lease_ms(self) -> int:
        """`lease`, in milliseconds."""
        return int(self.lease * 1000)

    def secret(self, field: str) -> str:
        """What the setting `field`, or the file that `<field>_file` names, says; empty if neither is set.
        Raises ConfigurationError."""
        text: str = getattr(self, field).get_secret_value()
        name = getattr(self, f"{field}_file")
        if text or not name:
            return text
        return read_setting(self.variable(f"{field}_file"), name)

    def key_encryption_secret(self) -> str:
        """The key encryption keys, from variable or file. Raises ConfigurationError if there are none."""
        text = self.secret("key_encryption_keys")
        if not text:
            raise ConfigurationError(
                "FEDSVC_KEY_ENCRYPTION_KEYS", "is not set; private keys are only stored encrypted"
            )
        return text

    def _chosen(self, field: str) -> bool:
        """Whether it is another than the default."""
        return bool(getattr(self, field) != type(self).model_fields[field].default)

    def contradictions(self) -> Iterator[ConfigurationError]:
        s, variable = self, self.variable
        # What was not set gives way: it warns of nothing then, and connecting has what there is for all.
        if self._chosen("memory_warning") and s.memory_critical <= s.memory_warning:
            yield ConfigurationError(
                variable("memory_warning"),
                f"{s.memory_warning:g} is not below {variable('memory_critical')} ({s.memory_critical:g}): "
                "calls would be refused before anything moves to SQL",
            )
        if self._chosen("connect_timeout") and s.delivery_timeout < s.connect_timeout:
            yield ConfigurationError(
                variable("connect_timeout"),
                f"{s.connect_timeout:g} is above {variable('delivery_timeout')} ({s.delivery_timeout:g}), "
                "which is for connecting and the answer together",
            )
