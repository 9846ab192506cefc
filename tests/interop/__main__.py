"""What `docs/interop.md` should say: `cd tests && ../.venv/bin/python -m interop [--write]`."""

from __future__ import annotations

import asyncio
import sys

from interop.page import PAGE, current_page


def main() -> None:
    page = asyncio.run(current_page())
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page)
    elif sys.argv[1:]:
        sys.exit("usage: python -m interop [--write]")
    else:
        print(page, end="")


if __name__ == "__main__":
    main()
