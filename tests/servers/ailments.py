"""What may be wrong with an installation, for the doctor to find: each is staged alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedsvc.archive import migrate
from fedsvc.cli.doctor import examine
from fedsvc.cli.findings import Finding
from fedsvc.config import Settings
from fedsvc.domain.keys import KeyCipher, load_private_key
from fedsvc.queue import server_info
from fedsvc.queue.keys import Keys
from fedsvc.queue.keystore import KeyStore, key_cipher
from fedsvc.queue.link import Link
from servers.certificates import authority
from servers.valkey import ValkeyServer

TOKEN_ENTRY = "app:deliver:*:" + "0" * 64


@dataclass
class Stage:
    """A site on which one thing can be set up wrongly."""

    settings: dict[str, str]
    redis: ValkeyServer
    directory: Path
    patch: pytest.MonkeyPatch
    pem: str
    name: str = "localhost"

    def file(self, name: str, content: str | bytes, mode: int = 0o600) -> str:
        path = self.directory / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return str(path)

    def serve(self, certificate: Path, key: Path | None = None) -> None:
        """TLS with this certificate, and its key or another's."""
        parts = [
            path.read_bytes().partition(b"-----BEGIN CERT") for path in (certificate, key or certificate)
        ]
        self.settings["FEDSVC_TLS_CERT"] = self.file("cert.pem", parts[0][1] + parts[0][2])
        self.settings["FEDSVC_TLS_KEY"] = self.file("key.pem", parts[1][0])

    def find(self) -> list[Finding]:
        """All that is not well."""
        for name in [name for name in os.environ if name.startswith("FEDSVC_")]:
            self.patch.delenv(name)
        for name, value in self.settings.items():
            self.patch.setenv(name, value)
        return [f for f in asyncio.run(examine(self.name)) if f.grade != "ok" and f.check != "Redis memory"]


def evicts(stage: Stage) -> None:
    with stage.redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")


def hides_its_version(stage: Stage) -> None:
    """As services do that others manage."""
    whole = server_info._info

    def told(answer: Any) -> dict[str, Any]:
        return {name: value for name, value in whole(answer).items() if not name.endswith("_version")}

    stage.patch.setattr(server_info, "_info", told)


def forgets(stage: Stage) -> None:
    with stage.redis.client() as client:
        client.config_set("appendonly", "no")


def is_a_replica(stage: Stage) -> None:
    with stage.redis.client() as client:
        client.replicaof("127.0.0.1", "1")


def has_other_partitions(stage: Stage) -> None:
    with stage.redis.client() as client:
        client.set("fedsvc:partitions", 5)


def was_never_migrated(stage: Stage) -> None:
    stage.settings["DATABASE_URL"] = f"sqlite:///{stage.file('empty.db', b'')}"


def was_migrated_long_ago(stage: Stage) -> None:
    database = f"sqlite:///{stage.directory / 'old.db'}"
    migrate.upgrade(Settings.from_environment({"DATABASE_URL": database}))
    migrate.downgrade(Settings.from_environment({"DATABASE_URL": database}), "0002")
    stage.settings["DATABASE_URL"] = database


def is_not_there(stage: Stage) -> None:
    stage.settings["DATABASE_URL"] = "postgresql://u:geheim@127.0.0.1:1/db"


def lost_a_key_encryption_key(stage: Stage) -> None:
    settings = Settings.from_environment(
        stage.settings | {"FEDSVC_KEY_ENCRYPTION_KEYS": KeyCipher.generate()}
    )

    async def store() -> None:
        link = Link.from_settings(settings)
        try:
            store = KeyStore(link, Keys("fedsvc"), key_cipher(settings), lifetime_s=3600)
            await store.ensure(load_private_key(stage.pem))
        finally:
            await link.close()

    asyncio.run(store())


def shows_its_keys(stage: Stage) -> None:
    Path(stage.settings["FEDSVC_KEY_ENCRYPTION_KEYS_FILE"]).chmod(0o640)


def has_keys_mounted_for_all(stage: Stage) -> None:
    """As Compose mounts them: of another user, who has to let all read them."""
    Path(stage.settings["FEDSVC_KEY_ENCRYPTION_KEYS_FILE"]).chmod(0o444)
    stage.patch.setattr("fedsvc.cli.findings.os.geteuid", lambda: 10001)


def has_keys_mounted_that_others_write(stage: Stage) -> None:
    Path(stage.settings["FEDSVC_KEY_ENCRYPTION_KEYS_FILE"]).chmod(0o664)
    stage.patch.setattr("fedsvc.cli.findings.os.geteuid", lambda: 10001)


def has_tokens_mounted_for_all(stage: Stage) -> None:
    lets_others_read_tokens(stage)
    stage.patch.setattr("fedsvc.cli.findings.os.geteuid", lambda: 10001)


def has_no_tls(stage: Stage) -> None:
    stage.settings["FEDSVC_TOKENS"] = TOKEN_ENTRY
    stage.settings["FEDSVC_LISTEN"] = "0.0.0.0:50051"
    stage.settings["FEDSVC_INSECURE"] = "true"


def has_no_door(stage: Stage) -> None:
    stage.settings["FEDSVC_LISTEN"] = "0.0.0.0:50051"
    stage.settings["FEDSVC_INSECURE"] = "true"


def has_a_clock_that_is_off(stage: Stage) -> None:
    import time

    now = time.time
    stage.patch.setattr("fedsvc.cli.doctor.time.time", lambda: now() + 90)


def has_no_dns(stage: Stage) -> None:
    stage.name = "nobody.invalid"


def has_bad_tokens(stage: Stage) -> None:
    stage.settings["FEDSVC_TOKENS_FILE"] = stage.file("tokens", "app:deliver")


def has_no_tokens_file(stage: Stage) -> None:
    stage.settings["FEDSVC_TOKENS_FILE"] = str(stage.directory / "gone")


def lets_others_write_tokens(stage: Stage) -> None:
    stage.settings["FEDSVC_TOKENS_FILE"] = stage.file("tokens", TOKEN_ENTRY, 0o666)


def lets_others_read_tokens(stage: Stage) -> None:
    stage.settings["FEDSVC_TOKENS_FILE"] = stage.file("tokens", TOKEN_ENTRY, 0o644)


def has_an_old_certificate(stage: Stage) -> None:
    stage.serve(authority().certify("localhost", days=(-3, -1)))


def has_a_certificate_for_later(stage: Stage) -> None:
    stage.serve(authority().certify("localhost", days=(1, 3)))


def has_a_certificate_that_ends_soon(stage: Stage) -> None:
    stage.serve(authority().certify("localhost", days=(-1, 5)))


def has_the_key_of_another_certificate(stage: Stage) -> None:
    stage.serve(authority().certify("localhost", days=(-1, 90)), authority().certify("localhost"))


def shows_its_certificates_key(stage: Stage) -> None:
    stage.serve(authority().certify("localhost", days=(-1, 90)))
    Path(stage.settings["FEDSVC_TLS_KEY"]).chmod(0o644)


def forgets_dead_letters_too_soon(stage: Stage) -> None:
    stage.settings |= {"FEDSVC_ARCHIVE_DEAD_RETENTION": "3600"}


def is_critical_before_it_warns(stage: Stage) -> None:
    stage.settings |= {"FEDSVC_MEMORY_WARNING": "0.95"}


def trusts_no_file(stage: Stage) -> None:
    stage.settings["FEDSVC_CA_FILE"] = stage.file("ca.pem", "nothing")


def traces_to_nowhere(stage: Stage) -> None:
    stage.settings |= {"FEDSVC_TRACING": "true", "OTEL_TRACES_EXPORTER": "teapot"}


def says(variable: str, value: str) -> Callable[[Stage], None]:
    def stage_it(stage: Stage) -> None:
        stage.settings[variable] = value

    stage_it.__name__ = f"{variable}={value}"
    return stage_it


def wants_more_safety_than_there_is(stage: Stage) -> None:
    stage.settings["FEDSVC_DURABILITY"] = "fsync"
    with stage.redis.client() as client:
        client.config_set("appendonly", "no")
