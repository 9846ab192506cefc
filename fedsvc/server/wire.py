"""What can be told of a message of Protocol Buffers before it is read."""

from __future__ import annotations


def has_more_fields(raw: bytes, most: int) -> bool:
    """Whether a message has more fields than that, without looking into them; those of groups count. Of what
    is no message nothing is told."""
    at = found = 0
    try:
        while at < len(raw):
            found += 1
            if found > most:
                return True
            if raw[at] & 0x87 == 2 and raw[at + 1] < 128:  # an ordinary text: one step, as there are many
                at += 2 + raw[at + 1]
                continue
            tag, at = _varint(raw, at)
            match tag & 7:
                case 0:
                    _, at = _varint(raw, at)
                case 1:
                    at += 8
                case 2:
                    size, at = _varint(raw, at)
                    at += size
                case 5:
                    at += 4
                case _:
                    pass
    except IndexError:
        pass
    return False


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """It, and where the next byte is. Raises IndexError if it is none."""
    value = raw[at]
    if value < 128:
        return value, at + 1
    value &= 127
    for shift in range(7, 70, 7):
        at += 1
        value |= (raw[at] & 127) << shift
        if raw[at] < 128:
            return value, at + 1
    raise IndexError
