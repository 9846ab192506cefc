"""The contract as protoc reads it, with its comments."""

import re
import subprocess
import sys
import tempfile
from enum import Enum
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final, NamedTuple

import fedsvc_client
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from fedsvc.errors import InvalidActivity, InvalidInbox, InvalidInput, InvalidKey

PROTO = Path(__file__).resolve().parents[2] / "proto"


#: reasons of INVALID_ARGUMENT
INVALID: Final = (
    InvalidInput.code,
    *sorted(kind.code for kind in (InvalidActivity, InvalidInbox, InvalidKey)),
)


class Source(NamedTuple):
    file: FileDescriptorProto
    #: path of an element in the descriptor -> the comment before it
    comments: dict[tuple[int, ...], str]

    def comment(self, *path: int) -> str:
        """Lines of the comment before the element, without what sets them apart from code."""
        return self.comments.get(path, "")


@cache
def contract() -> tuple[Source, ...]:
    """All files of proto/. Raises CalledProcessError if protoc cannot read them."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "descriptors")
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"-I{PROTO}",
                f"-I{files('grpc_tools') / '_proto'}",
                "--include_source_info",
                f"--descriptor_set_out={out}",
                *sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("fedsvc/v1/*.proto")),
            ],
            check=True,
        )
        found = FileDescriptorSet.FromString(out.read_bytes())
    return tuple(
        Source(
            file,
            {
                tuple(at.path): "\n".join(line.removeprefix(" ") for line in at.leading_comments.splitlines())
                for at in file.source_code_info.location
                if at.leading_comments
            },
        )
        for file in found.file
    )


def names_in_contract() -> set[str]:
    """Of all values of enums, in full and as the client has them."""
    files_ = [source.file for source in contract()]
    enums = [enum for file in files_ for enum in file.enum_type]
    enums += [enum for file in files_ for message in file.message_type for enum in message.enum_type]
    names = {value.name for enum in enums for value in enum.value}
    prefixes = [re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_" for enum in enums]
    return names | {name.removeprefix(prefix) for name in names for prefix in prefixes}


def client_enums() -> list[type[Enum]]:
    """Those that the Python client gives."""
    values = [getattr(fedsvc_client, name) for name in fedsvc_client.__all__]
    return [value for value in values if isinstance(value, type) and issubclass(value, Enum)]
