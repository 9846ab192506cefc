"""Logging: one line of JSON (or console text) an event, on standard error, with secrets taken out."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from fedsvc.config import Settings

REDACTED: Final = "[redacted]"
_PEM: Final = re.compile(r"-----BEGIN [^-]*-----.*?(?:-----END [^-]*-----|\Z)", re.DOTALL)
#: user:password@ in URLs, up to the last @: a password that was not quoted may hold some
_CREDENTIALS: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s]*@", re.IGNORECASE)
_SECRET_NAMES: Final = re.compile(
    r"private_?key|pem$|secret|password|passwd|token|authorization|encryption_keys", re.IGNORECASE
)
#: of nested values, beyond which nothing is looked at any more
_DEPTH: Final = 6

Event = MutableMapping[str, Any]


def redact_text(text: str) -> str:
    """Without private keys and without credentials in URLs."""
    if "-----BEGIN" in text:
        text = _PEM.sub(REDACTED, text)
    if "://" in text:
        text = _CREDENTIALS.sub(rf"\1{REDACTED}@", text)
    return text


def _redacted(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes):
        return redact_text(value.decode(errors="replace"))
    if isinstance(value, (int, float, bool)) or value is None:
        return value
    if depth >= _DEPTH:
        return REDACTED
    if isinstance(value, dict):
        return {
            key: REDACTED if _SECRET_NAMES.search(str(key)) else _redacted(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted(item, depth + 1) for item in value]
    return redact_text(str(value))


def redact(_: Any, __: str, event: Event) -> Event:
    """A structlog processor; runs last but for rendering."""
    for key, value in event.items():
        event[key] = REDACTED if _SECRET_NAMES.search(key) and value else _redacted(value)
    return event


class _NoText(logging.Filter):
    """Drops what gRPC logs, with a traceback, of metadata that is no UTF-8: anybody could fill the log, and
    what it quotes may be a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, UnicodeDecodeError)


_NO_TEXT: Final = _NoText()


def configure(settings: Settings, process: str) -> None:
    """Set up logging for this process; `process` names it in every line."""
    level = getattr(logging, settings.log_level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _, __, event: {"process": process, **event},
    ]
    if settings.log_format == "json":
        renderer: list[Any] = [
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.JSONRenderer(sort_keys=False),
        ]
    else:
        renderer = [structlog.processors.format_exc_info, redact, structlog.dev.ConsoleRenderer(colors=False)]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Of others' chatter only what matters: they log every statement and connection at INFO.
    for name in ("sqlalchemy", "alembic", "aiosqlite", "asyncio", "aiohttp", "grpc"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def leave_out_metadata() -> None:
    """Of what gRPC's server logs; called as often as servers begin."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_NO_TEXT)
