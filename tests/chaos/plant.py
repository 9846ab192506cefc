"""The service with everything around it, as separate processes."""

from __future__ import annotations

import secrets
from pathlib import Path

from servers.postgres import PostgresServer
from servers.processes import Fedsvc
from servers.unused_ports import unused_port
from servers.valkey import ValkeyServer


class Plant:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.valkey = ValkeyServer(
            self._folder("valkey"), appendonly=True, port=unused_port(), extra=("--appendfsync", "always")
        )
        self.postgres = PostgresServer()
        self.grpc = f"127.0.0.1:{unused_port()}"
        self.settings = {
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": self.postgres.url,
            "FEDSVC_LISTEN": self.grpc,
            "FEDSVC_HTTP_LISTEN": "127.0.0.1:0",
            "FEDSVC_ALLOW_HTTP": "true",
            "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8",
            "FEDSVC_KEY_ENCRYPTION_KEYS": secrets.token_hex(32),
            "FEDSVC_RETRY_SCALE": "0.01",
            "FEDSVC_LEASE": "2",
            "FEDSVC_READY_WINDOW": "4",  # origins' lines are in use too
            "FEDSVC_LOG_LEVEL": "warning",
        }
        self.processes = {
            name: Fedsvc(self._folder(name), command, settings=self.settings)
            for name, command in (("server", "server"), ("worker-1", "worker"), ("worker-2", "worker"))
        }

    def _folder(self, name: str) -> Path:
        folder = self.directory / name
        folder.mkdir()
        return folder

    def start(self) -> None:
        self.valkey.start()
        migration = Fedsvc(self._folder("migrate"), "migrate", settings=self.settings).start()
        if migration.process.wait(60):
            raise RuntimeError(migration.stderr)
        for process in self.processes.values():
            process.start()

    def stop(self) -> None:
        for process in self.processes.values():
            process.__exit__(None, None, None)
        self.valkey.close()
        self.postgres.close()
