"""What makes a process of fedsvc start sooner; nothing depends on it. Figures: docs/performance.md."""

from __future__ import annotations

import gc
import sys
from typing import Final

#: objects that are made before the youngest are looked through for garbage; Python's own is 700
_THRESHOLD: Final = 20_000


def hasten() -> None:
    """Before anything else is imported."""
    # Imports make a hundred thousand objects that stay, and looking through them again and again takes a
    # tenth of the time in which they are made.
    gc.set_threshold(_THRESHOLD, 20, 20)
    # structlog imports rich, if it is there, to print tracebacks in colour. None are here, and those who
    # print tables import it themselves.
    if "rich" not in sys.modules and "structlog" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]
        try:
            import structlog  # noqa: F401
        finally:
            del sys.modules["rich"]
