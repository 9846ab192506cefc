"""What a process does not import, so that it starts sooner."""

from __future__ import annotations

import subprocess
import sys


def test_of_two_databases_only_the_one_that_is_used_is_imported() -> None:
    code = (
        "import sys\n"
        "from fedsvc.archive import archive, archived_log, audit_log, engine, spill_store\n"
        "from fedsvc.config import Settings\n"
        "archive.Archive(engine.create_engine(Settings(database_url='sqlite:////tmp/x.db')))\n"
        "assert 'sqlalchemy.dialects.sqlite' in sys.modules\n"
        "assert 'sqlalchemy.dialects.postgresql' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
