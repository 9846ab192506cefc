"""What the server tells Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ACCEPTED = Counter("fedsvc_accepted", "Deliveries accepted.")
DUPLICATES = Counter("fedsvc_duplicates", "Deliveries asked for that had been accepted before.")
REJECTED = Counter("fedsvc_rejected", "Deliveries asked for that were not acceptable.")
MISMATCHES = Counter(
    "fedsvc_key_mismatches", "Activities to be signed with a key that is not their actor's, by its id."
)
REFUSED = Counter(
    "fedsvc_refused_calls", "Calls refused for want of a right, by gRPC status code.", ("code",)
)
RPCS = Counter("fedsvc_rpcs", "Calls, by method and gRPC status code.", ("method", "code"))
STREAMS = Gauge("fedsvc_open_streams", "Calls with many responses that are open, by method.", ("method",))
RPC_SECONDS = Histogram(
    "fedsvc_rpc_seconds",
    "Time that a call with one response took, in seconds.",
    ("method",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
