"""`fedsvc-outbox`, or `python -m fedsvc_client.outbox`: the relay as a process of its own, and a look at the
outbox."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from fedsvc_client._configuration import Configuration
from fedsvc_client._exceptions import FedsvcError
from fedsvc_client.outbox._relay import Relay
from fedsvc_client.outbox._table import Outbox

#: where the database is named, the first that is set
_DATABASE = ("FEDSVC_CLIENT_DATABASE_URL", "DATABASE_URL")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedsvc-outbox", description="Hands activities of a transactional outbox to fedsvc."
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        help="as SQLAlchemy takes it; FEDSVC_CLIENT_DATABASE_URL or DATABASE_URL if not given",
    )
    parser.add_argument("--table", default="fedsvc_outbox", help="name of the table (%(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="hand over what is written, until SIGTERM")
    run.add_argument("--until-empty", action="store_true", help="end when nothing is due")
    run.add_argument(
        "--keys",
        metavar="MODULE:FUNCTION",
        help="finds the private key (PEM) of a key id, if the server keeps none",
    )
    run.add_argument(
        "--poll", type=float, default=0.5, metavar="SECONDS", help="between two looks (%(default)s)"
    )
    run.add_argument(
        "--lease", type=float, default=60.0, metavar="SECONDS", help="see the docs (%(default)s)"
    )
    commands.add_parser("status", help="how many rows wait, and how many were put aside, as JSON")
    commands.add_parser("aside", help="rows that were put aside, with the reason, a JSON object a line")
    retry = commands.add_parser("retry", help="let rows that were put aside be sent after all")
    retry.add_argument("ids", nargs="*", type=int, metavar="ID", help="of these rows")
    retry.add_argument("--all", action="store_true", help="of all")
    commands.add_parser("ddl", help="print the SQL that makes the table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if it did its work, 1 if not (a line on standard error says why), 2 if it was called wrongly."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command == "retry" and bool(given.ids) == given.all:
        parser.error("retry takes either IDs or --all")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        return _do(given)
    except FedsvcError as error:
        problem = str(error)
    except SQLAlchemyError as error:
        # Its text shows statements and what they carry.
        problem = f"the database: {type(getattr(error, 'orig', None) or error).__name__}"
    except (ImportError, AttributeError, OSError, ValueError) as error:
        problem = str(error)
    sys.stderr.write(f"fedsvc-outbox: {problem}\n")
    return 1


def _do(given: argparse.Namespace) -> int:
    outbox, engine = Outbox(name=given.table), _engine(given.database)
    if given.command == "run":
        return _run(given, outbox, engine)
    if given.command == "ddl":
        parts: list[Any] = [
            CreateTable(outbox.table),
            *map(CreateIndex, sorted(outbox.table.indexes, key=str)),
        ]
        sys.stdout.write("".join(f"{str(p.compile(engine)).strip()};\n" for p in parts))
        return 0
    with engine.begin() as connection:
        if given.command == "status":
            told: Any = asdict(outbox.status(connection))
            told["oldest_age"] = told["oldest_age"].total_seconds()
            _print(told)
        elif given.command == "aside":
            for row in outbox.put_aside(connection, limit=10_000):
                _print(asdict(row))
        else:
            _print({"retried": outbox.retry(connection, None if given.all else given.ids)})
    return 0


def _run(given: argparse.Namespace, outbox: Outbox, engine: Engine) -> int:
    keys = _function(given.keys) if given.keys else None
    with Configuration.read().connect() as client:
        relay = Relay(engine, client, outbox, keys=keys, lease=given.lease)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: relay.stop())
        done = relay.run(poll=given.poll, until_empty=given.until_empty)
    _print(asdict(done))
    return 0


def _engine(url: str | None) -> Engine:
    name = "--database" if url else next((name for name in _DATABASE if os.environ.get(name)), "")
    if not name:
        raise FedsvcError(f"name the database: --database, or {_DATABASE[0]}")
    try:
        return create_engine(url or os.environ[name], pool_pre_ping=True)
    except ImportError as error:
        raise FedsvcError(
            f"{name}: the driver {error.name} is not installed; name one that is, as postgresql+psycopg2://..."
        ) from None
    except (ArgumentError, ValueError):  # what these say may be a part of its password
        raise FedsvcError(f"{name} is no URL of a database that SQLAlchemy knows") from None


def _function(name: str) -> Callable[[str], str | None]:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    found = getattr(importlib.import_module(module), attribute or "private_key")
    if not callable(found):
        raise AttributeError(f"{name} is no function")
    return found  # type: ignore[no-any-return]


def _print(told: Any) -> None:
    sys.stdout.write(f"{json.dumps(told)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
