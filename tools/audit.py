"""Hold every locked package against the vulnerabilities that PyPI knows of.

    python tools/audit.py [--timeout SECONDS]

Exit code 0: all were looked up, and nothing was found. 1: something was found. 2: the tool does not work. 3:
not all could be looked up, so that nothing is known; with AUDIT_REQUIRED set that is a failure too (1).
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
#: what is locked for development holds all that runs but what is in the image only
LOCKS = (ROOT / "requirements/dev.lock", ROOT / "requirements/image.lock")
#: vulnerability -> why it does no harm here
ACCEPTED: Final[dict[str, str]] = {}
FOUND, BROKEN, UNKNOWN = 1, 2, 3
_HEADINGS: Final = {
    0: "ok",
    FOUND: "VULNERABLE",
    BROKEN: "BROKEN",
    UNKNOWN: "NOT DONE, PyPI could not be asked",
}
#: what pip-audit says when it does not reach the service
_AWAY: Final = r"(?i)connect|timed? ?out|unreachable|HTTP ?[Ee]rror|Max retries"


class Verdict(NamedTuple):
    code: int
    lines: list[str]


def verdict(report: dict[str, Any]) -> Verdict:
    """Of a report of pip-audit, as JSON."""
    packages = report["dependencies"]
    unknown = [package for package in packages if "skip_reason" in package]
    lines = []
    for package in packages:
        for vulnerability in package.get("vulns", ()):
            if vulnerability["id"] in ACCEPTED:
                continue
            fixed = ", ".join(vulnerability["fix_versions"]) or "none yet"
            lines.append(f"{package['name']} {package['version']}: {vulnerability['id']}; fixed in: {fixed}")
    if lines:
        return Verdict(FOUND, lines)
    if unknown or not packages:
        return Verdict(UNKNOWN, [f"{len(packages) - len(unknown)} of {len(packages)} packages are looked up"])
    return Verdict(0, [f"{len(packages)} packages, no known vulnerability"])


def audit(lock: Path, timeout: float) -> Verdict:
    """`timeout`: seconds."""
    command = [
        str(Path(sys.executable).parent / "pip-audit"),
        *("--requirement", str(lock), "--require-hashes", "--disable-pip"),
        *("--vulnerability-service", "pypi", "--format", "json", "--timeout", "10"),
        *("--progress-spinner", "off"),
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Verdict(UNKNOWN, [f"no answer within {timeout:.0f} s"])
    try:
        return verdict(json.loads(done.stdout))
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return Verdict(UNKNOWN if re.search(_AWAY, said[0]) else BROKEN, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--timeout", type=float, default=180.0, metavar="SECONDS")
    timeout = parser.parse_args().timeout
    code = 0
    for lock in LOCKS:
        found = audit(lock, timeout)
        print(
            f"audit of {lock.relative_to(ROOT)}: {_HEADINGS[found.code]}",
            *found.lines,
            sep="\n  ",
            flush=True,
        )
        code = min(code or found.code, found.code or code)
    sys.exit(FOUND if code and os.environ.get("AUDIT_REQUIRED") else code)


if __name__ == "__main__":
    main()
