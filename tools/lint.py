"""Everything that `make lint` checks. Runs all, tells all, and fails if one failed."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CODE = [
    "fedsvc",
    "clients/python/src",
    "tests",
    "tools",
    "deploy/compose/prepare.py",
    "benchmarks",
    "docs/examples/fedsvc-example-handler",
]
#: what people wrote of it
CLIENT = [path for path in (ROOT / "clients/python/src").rglob("*.py") if path.parent.name != "_proto"]
#: seconds for one check
PATIENCE = 300

CHECKS: dict[str, list[str | Path]] = {
    "style (ruff)": [BIN / "ruff", "check", "."],
    "format (ruff)": [BIN / "ruff", "format", "--check", "."],
    "types (mypy, strict)": [BIN / "mypy", *CODE],
    "the client's Python is 3.9's (vermin)": [
        BIN / "vermin",
        "--quiet",
        "--no-tips",
        "--violations",
        "--target=3.9-",
        "--pessimistic",
        *CLIENT,
    ],
    "import contracts": [BIN / "lint-imports"],
    "contract (buf)": [BIN / "buf", "lint", "proto"],
    "stubs are fresh": [sys.executable, "tools/proto.py", "--check"],
    "releases: version, changelog, contract and formats": [sys.executable, "-m", "tools.release", "check"],
    "docs": [sys.executable, "-m", "tools.docs", "--check"],
}


def check(command: list[str | Path]) -> str | None:
    """What was found wrong; None if all is well."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {PATIENCE} s"
    except OSError as error:
        return f"cannot be run: {error}"
    return done.stdout or f"exit code {done.returncode}" if done.returncode else None


def main() -> None:
    failed = []
    for name, command in CHECKS.items():
        begun = time.monotonic()
        wrong = check(command)
        print(f"{'ok  ' if wrong is None else 'FAIL'} {name} ({time.monotonic() - begun:.1f} s)", flush=True)
        if wrong is not None:
            failed.append(name)
            print(wrong, flush=True)
    if failed:
        sys.exit(f"lint: {len(failed)} of {len(CHECKS)} checks failed: {', '.join(failed)}")
    print(f"lint: all {len(CHECKS)} checks passed")


if __name__ == "__main__":
    main()
