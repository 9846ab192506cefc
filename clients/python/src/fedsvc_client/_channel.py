"""How to reach a server: targets, channel options, and when to try again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

#: seconds before the first repetition, and the longest
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
#: bytes of one message
LARGEST = 64 * 1024 * 1024


@dataclass(frozen=True)
class TLS:
    """How to trust the server, and how it can trust us. Files are in PEM, read when a connection is made."""

    #: authorities to trust; the system's if not given
    ca_file: str | Path | None = None
    #: our own certificate with its chain, and its key, for a server that wants one
    cert_file: str | Path | None = None
    key_file: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        def read(path: str | Path | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return grpc.ssl_channel_credentials(read(self.ca_file), read(self.key_file), read(self.cert_file))


RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED})


def channel_options() -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", LARGEST),
        ("grpc.max_send_message_length", LARGEST),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.lb_policy_name", "round_robin"),
        # We repeat calls ourselves, under one request id.
        ("grpc.enable_retries", 0),
        # Channels with equal arguments would share connections, also with those of before a fork.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


class Attempts:
    """Attempts of one call within one deadline, with growing pauses between them."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds for all of them together."""
        self._end = time.monotonic() + timeout

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._end - time.monotonic())

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each repetition; ends when there is no time for another."""
        pause = FIRST_PAUSE
        while True:
            wait = pause * (0.5 + random.random() / 2)
            if wait >= self.left:
                return
            yield wait
            pause = min(pause * 2, LONGEST_PAUSE)
