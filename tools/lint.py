"""Everything that `make lint` checks. Runs all, tells all, and fails if one failed."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CODE = ["fedsvc", "clients/python/src", "tests", "tools", "benchmarks"]

CHECKS: dict[str, list[str | Path]] = {
    "style (ruff)": [BIN / "ruff", "check", "."],
    "format (ruff)": [BIN / "ruff", "format", "--check", "."],
    "types (mypy, strict)": [BIN / "mypy", *CODE],
    "import contracts": [BIN / "lint-imports"],
    "contract (buf)": [BIN / "buf", "lint", "proto"],
    "stubs are fresh": [sys.executable, "tools/proto.py", "--check"],
    "docs": [sys.executable, "tools/docs.py", "--check"],
}


def main() -> None:
    failed = []
    for name, command in CHECKS.items():
        begun = time.monotonic()
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        mark = "ok  " if done.returncode == 0 else "FAIL"
        print(f"{mark} {name} ({time.monotonic() - begun:.1f} s)", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout, flush=True)
    if failed:
        sys.exit(f"lint failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
