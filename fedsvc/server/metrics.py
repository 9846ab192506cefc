"""What the server tells Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

ACCEPTED = Counter("fedsvc_accepted", "Deliveries accepted.")
DUPLICATES = Counter("fedsvc_duplicates", "Deliveries asked for that had been accepted before.")
REJECTED = Counter("fedsvc_rejected", "Deliveries asked for that were not acceptable.")
REFUSED = Counter(
    "fedsvc_refused_calls", "Calls refused for want of a right, by gRPC status code.", ("code",)
)
RPCS = Counter("fedsvc_rpcs", "Calls, by method and gRPC status code.", ("method", "code"))
RPC_SECONDS = Histogram(
    "fedsvc_rpc_seconds",
    "Time that a call took, in seconds.",
    ("method",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
