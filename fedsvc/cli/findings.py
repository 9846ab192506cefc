"""What `fedsvc doctor` finds."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Grade = Literal["ok", "warning", "failed"]
MARKS: Final = {"ok": "ok  ", "warning": "warn", "failed": "FAIL"}


@dataclass(frozen=True)
class Finding:
    check: str
    grade: Grade
    found: str
    #: how to mend it
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def failed(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "failed", found, advice)


def warning(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "warning", found, advice)


def permissions(path: str) -> int:
    """What group and others may do with a file, as in chmod; 0 if nothing, or if there is no such file."""
    try:
        return stat.S_IMODE(Path(path).stat().st_mode) & 0o077
    except OSError:
        return 0


def mounted(path: str) -> bool:
    """Whether a file is somebody else's, as the secrets are that Kubernetes and Compose mount: we could not
    read it if neither our group nor everybody might, and cannot change that."""
    try:
        return os.geteuid() not in (0, Path(path).stat().st_uid)
    except OSError:
        return False
