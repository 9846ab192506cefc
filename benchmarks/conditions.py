"""How a scenario is run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Sink, sink
from benchmarks.service import Database, Service


@dataclass(frozen=True)
class Conditions:
    rounds: int
    #: smaller numbers, for a look; what needs large ones is left out
    quick: bool = False
    #: whether other queues take part
    peers: bool = True
    #: program of the Redis or Valkey server; None for the one that `fedsvc dev` finds
    server: Path | None = None

    def pick(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @contextmanager
    def stage(self, certificates: Sequence[Path] = (), **settings: str) -> Iterator[tuple[Service, Sink]]:
        """A service of its own, without workers, and inboxes, with TLS if there are certificates."""
        with (
            tempfile.TemporaryDirectory(prefix="fedsvc-bench-") as directory,
            Database(Path(directory), self.server) as database,
            sink(certificates) as inboxes,
            Service(Path(directory), database, **settings) as service,
        ):
            yield service, inboxes
