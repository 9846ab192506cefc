"""A `fedsvc dev` that runs, as `fedsvc doctor` finds it: what it brought itself stands in no setting."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from fedsvc.brought import BROUGHT, said
from fedsvc.embedded import LISTEN

#: where `fedsvc dev` puts everything if nothing is said
_USUAL: Final = Path("fedsvc-data")


@dataclass(frozen=True)
class Instance:
    data_dir: Path
    #: of its Valkey
    socket: str
    #: address of its server; empty before it serves
    listen: str = ""

    @classmethod
    def at_hand(cls) -> Self | None:
        """The one on ./fedsvc-data, where the environment names no other place; None if none runs."""
        if any(map(said, BROUGHT)):
            return None
        return cls.named(_USUAL)

    @classmethod
    def named(cls, data_dir: Path) -> Self | None:
        """The one on `data_dir`; None if none runs."""
        data_dir = data_dir.absolute()
        try:
            path = (data_dir / "valkey" / "socket").read_text()
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(path)
        except (OSError, ValueError):
            return None
        try:
            listen = (data_dir / LISTEN).read_text()
        except OSError:
            listen = ""
        return cls(data_dir, path, listen)

    def overrides(self) -> dict[str, Any]:
        """Its settings, but for those that the environment says, as it said them to it. Where it listens it
        knows best."""
        brought = {
            "redis_url": f"unix://{self.socket}",
            "database_url": f"sqlite:///{self.data_dir / 'archive.db'}",
            "key_encryption_keys_file": str(self.data_dir / "key-encryption-keys"),
        }
        found = {field: told for field, told in brought.items() if not said(field)}
        return found | ({"listen": self.listen} if self.listen else {})
