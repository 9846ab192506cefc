"""An archive as `fedsvc migrate` leaves it, for tests of something else."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from fedsvc.archive import migrate
from fedsvc.config import Settings

SQLITE = "sqlite:///"


def prepare(settings: Settings) -> None:
    """Have the archive migrated; a file of SQLite that is not there yet is copied."""
    url = settings.database_url
    path = Path(url.removeprefix(SQLITE))
    if url.startswith(SQLITE) and "?" not in url and not path.exists():
        path.write_bytes(_empty())
    else:
        migrate.upgrade(settings)


@cache
def _empty() -> bytes:
    """Made once: to migrate takes longer than all else that a server does to start."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "archive.db"
        migrate.upgrade(Settings.from_environment({"DATABASE_URL": f"{SQLITE}{path}"}))
        return path.read_bytes()
