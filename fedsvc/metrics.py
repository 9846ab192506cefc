"""What server and workers both tell Prometheus. Labels of all metrics are of bounded number: never hosts,
never ids."""

from __future__ import annotations

import platform

from prometheus_client import Counter, Gauge

from fedsvc import __version__

REDIS_ERRORS = Counter(
    "fedsvc_redis_errors",
    "Batches of commands that Redis did not answer, or refused as it was read-only or full.",
)
SQL_ERRORS = Counter("fedsvc_sql_errors", "Transactions that the database did not take, or not in time.")
BUILD_INFO = Gauge(
    "fedsvc_build_info", "1, with the version that runs.", ("version", "python"), multiprocess_mode="max"
)
BUILD_INFO.labels(__version__, platform.python_version()).set(1)
