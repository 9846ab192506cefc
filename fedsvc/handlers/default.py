"""Types that nobody has a handler for: they pass as they are, as mass traffic, in no order."""

from __future__ import annotations

from fedsvc.handlers.base import Handler


class Default(Handler):
    types = ()
