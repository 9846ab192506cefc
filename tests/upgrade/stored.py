"""A queue and its archive as files that any later version can be given.

The queue is kept as the commands that make it (an append-only file that was just written anew), so that any
server takes it; the archive as SQL.
"""

from __future__ import annotations

import gzip
import io
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from servers.valkey import PATIENCE, ValkeyServer

QUEUE, ARCHIVE, MANIFEST = "queue.resp.gz", "archive.sql.gz", "manifest.json"


def save_queue(server: ValkeyServer, directory: Path, target: Path) -> None:
    """`directory`: that of the server, which was started with `aof-use-rdb-preamble no`."""
    end = time.monotonic() + PATIENCE
    with server.client() as redis:
        redis.bgrewriteaof()
        while True:
            info = redis.info("persistence")
            if not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]:
                break
            assert time.monotonic() < end, "the append-only file is not written anew"
            time.sleep(0.02)
        assert info["aof_last_bgrewrite_status"] == "ok"
    newest = max((directory / "appendonlydir").glob("*.base.aof"), key=lambda path: path.stat().st_mtime_ns)
    (target / QUEUE).write_bytes(gzip.compress(newest.read_bytes(), mtime=0))


def load_queue(server: ValkeyServer, source: Path, later_ms: int) -> None:
    """`later_ms`: how long ago it was saved. What expires does so that much later than it would have."""
    packed = gzip.decompress((source / QUEUE).read_bytes())
    with server.client() as redis:
        for name, *arguments in commands(packed):
            if name.upper() == b"PEXPIREAT":
                arguments[1] = b"%d" % (int(arguments[1]) + later_ms)
            redis.execute_command(name, *arguments)


def commands(packed: bytes) -> Iterator[list[bytes]]:
    """Of the form in which Redis speaks: `*2`, then `$3` and three bytes for each part."""
    stream = io.BytesIO(packed)
    while line := stream.readline():
        assert line[:1] == b"*", line
        parts = []
        for _ in range(int(line[1:])):
            head = stream.readline()
            assert head[:1] == b"$", head
            parts.append(stream.read(int(head[1:])))
            assert stream.read(2) == b"\r\n"
        yield parts


def save_archive(database: Path, target: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        text = "\n".join(connection.iterdump())
    (target / ARCHIVE).write_bytes(gzip.compress(text.encode(), mtime=0))


def load_archive(source: Path, database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(gzip.decompress((source / ARCHIVE).read_bytes()).decode())
