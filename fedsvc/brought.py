"""What `fedsvc dev` brings where the environment says nothing: for itself, and for whoever looks for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

#: settings, each with the variables that say it
BROUGHT: Final[Mapping[str, frozenset[str]]] = {
    "redis_url": frozenset({"REDIS_URL", "FEDSVC_REDIS_URL_FILE"}),
    "database_url": frozenset({"DATABASE_URL", "FEDSVC_DATABASE_URL_FILE"}),
    "key_encryption_keys_file": frozenset({"FEDSVC_KEY_ENCRYPTION_KEYS", "FEDSVC_KEY_ENCRYPTION_KEYS_FILE"}),
}


def said(setting: str) -> bool:
    """Whether the environment says what would be brought so. A file without a name says nothing."""
    given = BROUGHT[setting] & os.environ.keys()
    return any(os.environ[name] or not name.endswith("_FILE") for name in given)
