"""Which format the data has, and whether this version may touch it.

The number goes up by one with the first minor version that changes what is stored in Redis or SQL in a way
that another version sees. Every version reads all formats up to its own, and writes only what the one before
can read, so that two neighbours may run on the same data, in either direction (docs/releases.md).
"""

from __future__ import annotations

from typing import Final

from fedsvc import __version__
from fedsvc.errors import ConfigurationError
from fedsvc.queue.keys import Keys
from fedsvc.queue.link import Link

FORMAT: Final = 1


async def formats_of(link: Link, keys: Keys) -> dict[int, str]:
    """Formats in which this queue was ever written, with the version that did so first. Raises
    QueueUnavailable."""
    flat = await link.call("HGETALL", keys.formats)
    return {int(number): version.decode() for number, version in zip(flat[::2], flat[1::2], strict=True)}


async def record_format(link: Link, keys: Keys) -> None:
    """Write down that this version was here. Raises ConfigurationError if a version was here whose data this
    one cannot read for sure, QueueUnavailable if Redis does not answer."""
    written = await formats_of(link, keys)  # a full Redis would refuse to set what is set
    if problem := too_new(written):
        raise ConfigurationError("REDIS_URL", problem)
    if FORMAT not in written:
        await link.call("HSETNX", keys.formats, FORMAT, __version__)


def too_new(written: dict[int, str]) -> str:
    """What is wrong with formats as `formats_of` tells them; empty if nothing is."""
    newest = max(written, default=FORMAT)
    if newest <= FORMAT + 1:
        return ""
    return (
        f"this queue holds data in format {newest}, of fedsvc {written[newest]}; fedsvc {__version__} reads "
        f"up to format {FORMAT + 1}: run a version that is at most one format behind"
    )
