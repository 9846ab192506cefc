"""Resolve requirements/runtime.lock and requirements/dev.lock from pyproject.toml, with hashes.

Runs `uv pip compile` from a throw-away environment, so that the resolver is no dependency of ours.
The output carries no index addresses: it installs from whichever index the machine uses.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = [
    "--universal", "--python-version", "3.11", "--generate-hashes",
    "--no-emit-index-url", "--no-annotate", "--no-header", "--quiet", "--no-emit-package", "fedsvc-client",
]  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "venv", scratch], check=True)
        subprocess.run([f"{scratch}/bin/pip", "install", "--quiet", "uv>=0.5"], check=True)
        # What runs is what was tested: the runtime lock takes its versions from the other.
        tested = ["--constraint", "requirements/dev.lock"]
        for name, extra in (("dev", ["--group", "dev"]), ("runtime", tested)):
            target = ROOT / "requirements" / f"{name}.lock"
            command = [
                f"{scratch}/bin/uv",
                "pip",
                "compile",
                "pyproject.toml",
                *extra,
                *FLAGS,
                "-o",
                str(target),
            ]
            if "--upgrade" in sys.argv[1:]:
                command.append("--upgrade")
            subprocess.run(command, check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
