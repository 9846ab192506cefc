"""A real `fedsvc server`, to be called with anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from servers.migrated import prepare
from servers.processes import Fedsvc
from servers.unused_ports import unused_port
from servers.valkey import valkey_server

from fedsvc.config import Settings
from fedsvc.domain.keys import KeyCipher
from fedsvc.server.caller import Caller
from fedsvc.server.tokens import entry_text, new_token


@dataclass(frozen=True)
class Serving:
    fedsvc: Fedsvc
    channel: Any  # a grpc.Channel; its types do not know methods without a codec
    token: str

    @property
    def complaints(self) -> list[str]:
        """Lines of its log that tell of a defect."""
        lines = self.fedsvc.stderr.splitlines() + self.fedsvc.lines
        return [
            line
            for line in lines
            if '"level": "error"' in line or '"level":"error"' in line or "Traceback" in line
        ]


@contextmanager
def serving(directory: Path) -> Iterator[Serving]:
    """With a Valkey and a database of its own, and a token that may do everything."""
    token = new_token()
    with ExitStack() as stack:
        (directory / "valkey").mkdir()
        (directory / "server").mkdir()
        valkey = stack.enter_context(valkey_server(directory / "valkey"))
        port = unused_port()
        settings = {
            "REDIS_URL": valkey.url,
            "DATABASE_URL": f"sqlite:///{directory}/archive.db",
            "FEDSVC_KEY_ENCRYPTION_KEYS": KeyCipher.generate(),
            "FEDSVC_TOKENS": entry_text(Caller("fuzzer"), token),
            "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
            "FEDSVC_LISTEN": f"127.0.0.1:{port}",
            "FEDSVC_ALLOW_HTTP": "true",
        }
        prepare(Settings.from_environment(settings))
        fedsvc = stack.enter_context(Fedsvc(directory / "server", "server", settings=settings))
        channel = stack.enter_context(
            grpc.insecure_channel(
                f"127.0.0.1:{port}",
                options=[("grpc.max_send_message_length", 64 << 20), ("grpc.enable_retries", 0)],
            )
        )
        grpc.channel_ready_future(channel).result(timeout=60)
        yield Serving(fedsvc, channel, token)
