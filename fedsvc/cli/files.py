"""Files that commands are given: read as far as can be meant, since some have no end."""

from __future__ import annotations

from typing import IO, AnyStr, Final

from fedsvc.cli.output import memory_size
from fedsvc.errors import ConfigurationError

#: bytes of an activity: FEDSVC_MAX_ACTIVITY_BYTES is no more anywhere
ACTIVITY: Final = 16 * 1024 * 1024
#: of all inboxes of a call: it is one message, which the client sends if it is no larger
INBOXES: Final = 64 * 1024 * 1024
#: of a private key
KEY: Final = 65_536


def read_whole(file: IO[AnyStr], argument: str, most: int) -> AnyStr:
    """Raises ConfigurationError, which names the argument, if it has more than `most`."""
    found = file.read(most + 1)
    if len(found) > most:
        raise ConfigurationError(argument, f"{file.name} has more than {memory_size(most)}")
    return found


def read_key(file: IO[bytes]) -> str:
    """PEM. Raises ConfigurationError."""
    try:
        return read_whole(file, "--key-file", KEY).decode("ascii")
    except UnicodeDecodeError:
        raise ConfigurationError("--key-file", f"{file.name} is not PEM (text)") from None
