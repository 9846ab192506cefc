"""Generate the stubs of server and client from proto/, or check that they are fresh.

    python tools/proto.py            write them
    python tools/proto.py --check    exit 1 and name the files if what is committed differs

Both copies come from one run: the server's as package `fedsvc.v1`, the client's as `fedsvc_client._proto`
with its imports rewritten, so that the client needs nothing of the server.
"""

import os
import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
SERVER = Path("fedsvc/v1")
CLIENT = Path("clients/python/src/fedsvc_client/_proto")
HEADER = '"""Generated from proto/ by `make proto`; not to be edited."""\n'


def generate(target: Path) -> None:
    """Write all stubs below `target`, as below the root."""
    # protoc finds its plug-ins by PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("fedsvc/v1/*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        failed = protoc.main(
            [
                "protoc",
                f"-I{PROTO}",
                f"-I{files('grpc_tools') / '_proto'}",
                f"--python_out={scratch}",
                f"--grpc_python_out={scratch}",
                f"--mypy_out=quiet:{scratch}",
                f"--mypy_grpc_out=quiet:{scratch}",
                *sources,
            ]
        )
        if failed:
            sys.exit(1)
        made = sorted(
            path
            for path in Path(scratch, "fedsvc/v1").iterdir()
            if not path.name.startswith("types_pb2_grpc")
        )
        for folder, package in ((SERVER, "fedsvc.v1"), (CLIENT, "fedsvc_client._proto")):
            (target / folder).mkdir(parents=True, exist_ok=True)
            (target / folder / "__init__.py").write_text(HEADER)
            for path in made:
                (target / folder / path.name).write_text(moved(path.read_text(), package))


def moved(text: str, package: str) -> str:
    """Generated code with its imports of `fedsvc.v1` pointing to `package`."""
    if package == "fedsvc.v1":
        return text
    text = re.sub(r"^from fedsvc\.v1 import", f"from {package} import", text, flags=re.MULTILINE)
    # In the type stubs names are qualified: fedsvc.v1.types_pb2.Delivery.
    text = re.sub(r"\bfedsvc\.v1\.(\w+_pb2)", rf"{package}.\1", text)
    return re.sub(r"^import fedsvc\.v1\b", f"import {package}", text, flags=re.MULTILINE)


def stale() -> list[str]:
    """Files that differ from what would be generated now."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        names = {
            str(path.relative_to(base))
            for base in (Path(scratch), ROOT)
            for folder in (SERVER, CLIENT)
            for path in (base / folder).glob("*.py*")
            if path.is_file()
        }
        return sorted(
            name
            for name in names
            if not Path(scratch, name).is_file()
            or not (ROOT / name).is_file()
            or Path(scratch, name).read_text() != (ROOT / name).read_text()
        )


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        if names := stale():
            sys.exit("stubs are not fresh, run `make proto`: " + ", ".join(names))
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        generate(ROOT)


if __name__ == "__main__":
    main()
