"""What stands in for a signature where signing is not to be measured."""

from typing import Final

#: as long as one of RSA-2048
NULL_SIGNATURE: Final = bytes(256)
