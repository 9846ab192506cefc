"""Reference pages made from the code, and checks that the docs speak of what exists.

python -m tools.docs            write docs/reference/
python -m tools.docs --check    exit 1 if a page is stale or not in the index, a link leads nowhere, or
                                something named in the docs (a setting, a make target, a command or its
                                option, a module, a file or test in it, a reason or state, a metric, a call
                                of the client with its parameters) is not there, a picture is on no page,
                                or a reason is in no table of docs/operations.md
"""

from tools.docs.checks import KINDS, ROOT, SETTINGS, pages, problems, slug, unexplained_reasons, unlisted
from tools.docs.generated import GENERATED, stale
from tools.docs.metrics_page import metric_families

__all__ = [
    "GENERATED",
    "KINDS",
    "ROOT",
    "SETTINGS",
    "metric_families",
    "pages",
    "problems",
    "slug",
    "stale",
    "unexplained_reasons",
    "unlisted",
]
