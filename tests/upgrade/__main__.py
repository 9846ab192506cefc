"""Write data of this version, of deliveries in every state, into a directory."""

import asyncio
import sys
import tempfile
from pathlib import Path

from upgrade.scenario import record


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"{__doc__}\n\n    python -m upgrade DIRECTORY")
    with tempfile.TemporaryDirectory(prefix="fedsvc-upgrade-") as scratch:
        asyncio.run(record(Path(sys.argv[1]).resolve(), Path(scratch)))


if __name__ == "__main__":
    main()
