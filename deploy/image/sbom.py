"""The image's bill of materials, in CycloneDX: Python packages as cyclonedx-py lists them, and Debian's.

sbom.py PYTHON.json DEBIAN-PACKAGES TARGET.json

DEBIAN-PACKAGES has lines of name, version and architecture, as dpkg-query prints them. What is written is
checked against CycloneDX's own schema. Runs while the image is built, with nothing but what
`requirements/image.lock` has.
"""

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def debian_component(line: str) -> dict[str, Any]:
    name, version, architecture = line.split()
    purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main() -> None:
    python, debian, target = map(Path, sys.argv[1:])
    bom = json.loads(python.read_text())
    bom["components"] += [debian_component(line) for line in debian.read_text().splitlines()]
    text = json.dumps(bom, indent=1)
    problem = JsonStrictValidator(SchemaVersion.from_version(bom["specVersion"])).validate_str(text)
    if problem is not None:
        sys.exit(f"the bill of materials is not valid: {problem}")
    target.write_text(text)


if __name__ == "__main__":
    main()
