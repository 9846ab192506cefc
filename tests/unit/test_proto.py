"""The contract: what buf's lint does not see, and that both copies of the stubs are what proto/ says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from enum import IntEnum, StrEnum
from importlib.resources import files
from pathlib import Path

import pytest
from fedsvc_client import _types as client
from fedsvc_client._proto import types_pb2 as client_types_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorSet

from fedsvc.domain import delivery as domain
from fedsvc.v1 import delivery_service_pb2, key_service_pb2, operations_service_pb2, types_pb2

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("fedsvc/v1", "clients/python/src/fedsvc_client/_proto")
SERVICES = [
    service
    for module in (delivery_service_pb2, operations_service_pb2, key_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
READING = ("Get", "List", "Watch")


def called(prefixes: tuple[str, ...], *, wanted: bool = True) -> list[MethodDescriptor]:
    return [method for method in METHODS if method.name.startswith(prefixes) is wanted]


def name_of(method: MethodDescriptor) -> str:
    return str(method.name)


def reachable(message: Descriptor) -> dict[str, Descriptor]:
    """The message and all messages that it may hold, by full name."""
    found: dict[str, Descriptor] = {}
    todo = [message]
    while todo:
        one = todo.pop()
        if one.full_name not in found:
            found[one.full_name] = one
            todo += [field.message_type for field in one.fields if field.message_type]
    return found


def tool(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "tools/proto.py", *arguments],
        cwd=root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    """All files of the contract, with their comments."""
    out = tmp_path_factory.mktemp("proto") / "descriptors"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-Iproto",
            f"-I{files('grpc_tools') / '_proto'}",
            "--include_source_info",
            f"--descriptor_set_out={out}",
            *sorted(str(path.relative_to(ROOT / "proto")) for path in ROOT.glob("proto/fedsvc/v1/*.proto")),
        ],
        cwd=ROOT,
        check=True,
    )
    found = FileDescriptorSet.FromString(out.read_bytes())
    assert {Path(file.name).stem for file in found.file} == {
        "types",
        "delivery_service",
        "operations_service",
        "key_service",
    }
    return found


Place = tuple[tuple[int, ...], str]


def in_enum(path: tuple[int, ...], scope: str, enum: EnumDescriptorProto) -> Iterator[Place]:
    name = f"{scope}.{enum.name}"
    yield path, name
    number = EnumDescriptorProto.VALUE_FIELD_NUMBER
    yield from (((*path, number, i), f"{name}.{value.name}") for i, value in enumerate(enum.value))


def in_message(path: tuple[int, ...], scope: str, message: DescriptorProto) -> Iterator[Place]:
    name = f"{scope}.{message.name}"
    yield path, name
    own = DescriptorProto
    for i, field in enumerate(message.field):
        yield (*path, own.FIELD_FIELD_NUMBER, i), f"{name}.{field.name}"
    for i, oneof in enumerate(message.oneof_decl):
        yield (*path, own.ONEOF_DECL_FIELD_NUMBER, i), f"{name}.{oneof.name}"
    for i, nested in enumerate(message.nested_type):
        yield from in_message((*path, own.NESTED_TYPE_FIELD_NUMBER, i), name, nested)
    for i, enum in enumerate(message.enum_type):
        yield from in_enum((*path, own.ENUM_TYPE_FIELD_NUMBER, i), name, enum)


def test_everything_in_the_contract_is_described(parsed: FileDescriptorSet) -> None:
    silent = []
    for file in parsed.file:
        places: list[Place] = []
        for i, message in enumerate(file.message_type):
            places += in_message((file.MESSAGE_TYPE_FIELD_NUMBER, i), file.package, message)
        for i, enum in enumerate(file.enum_type):
            places += in_enum((file.ENUM_TYPE_FIELD_NUMBER, i), file.package, enum)
        for i, service in enumerate(file.service):
            path = (file.SERVICE_FIELD_NUMBER, i)
            places.append((path, service.name))
            number = service.METHOD_FIELD_NUMBER
            places += [((*path, number, j), f"{service.name}.{m.name}") for j, m in enumerate(service.method)]
        assert places, file.name
        commented = {tuple(at.path) for at in file.source_code_info.location if at.leading_comments.strip()}
        silent += [name for path, name in places if path not in commented]
    assert not silent


def test_zero_of_every_enum_is_unspecified(parsed: FileDescriptorSet) -> None:
    enums = [enum for file in parsed.file for enum in file.enum_type]
    enums += [enum for file in parsed.file for message in file.message_type for enum in message.enum_type]
    assert enums
    for enum in enums:
        assert enum.value[0].number == 0
        assert enum.value[0].name.endswith("_UNSPECIFIED")


@pytest.mark.parametrize("method", called(READING, wanted=False), ids=name_of)
def test_a_call_that_changes_something_has_a_request_id(method: MethodDescriptor) -> None:
    assert "request_id" in method.input_type.fields_by_name


@pytest.mark.parametrize("method", called(("List",)), ids=name_of)
def test_a_list_has_pages(method: MethodDescriptor) -> None:
    assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
    assert "next_page_token" in method.output_type.fields_by_name


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_a_private_key_never_comes_out(method: MethodDescriptor) -> None:
    for name, message in reachable(method.output_type).items():
        assert not [field for field in message.fields_by_name if "private" in field], name


@pytest.mark.parametrize(
    ("rules", "name", "prefix"),
    [
        (domain.Priority, "Priority", "PRIORITY_"),
        (domain.DeliveryState, "DeliveryState", "DELIVERY_STATE_"),
        (domain.Reason, "Reason", "REASON_"),
    ],
)
def test_numbers_are_the_same_in_the_domain_and_in_the_contract(
    rules: type[IntEnum], name: str, prefix: str
) -> None:
    contract = {
        value.name.removeprefix(prefix): value.number
        for value in types_pb2.DESCRIPTOR.enum_types_by_name[name].values
        if value.number
    }
    assert {member.name: member.value for member in rules} == contract


@pytest.mark.parametrize(
    ("typed", "name", "prefix"),
    [
        (client.Priority, "Priority", "PRIORITY_"),
        (client.DeliveryState, "DeliveryState", "DELIVERY_STATE_"),
    ],
)
def test_the_client_knows_every_name_of_the_contract(typed: type[StrEnum], name: str, prefix: str) -> None:
    contract = client_types_pb2.DESCRIPTOR.enum_types_by_name[name]
    assert issubclass(typed, StrEnum)
    assert {member.value for member in typed} == {v.name.removeprefix(prefix) for v in contract.values}


@pytest.mark.parametrize("server_first", [True, False])
def test_both_copies_live_in_one_process(server_first: bool) -> None:
    names = ["delivery_service_pb2_grpc", "operations_service_pb2_grpc", "key_service_pb2_grpc", "types_pb2"]
    packages = ["fedsvc.v1", "fedsvc_client._proto"]
    imports = [
        f"import {package}.{name}"
        for package in (packages if server_first else reversed(packages))
        for name in names
    ]
    same = "fedsvc.v1.types_pb2.Delivery(attempts=3).SerializeToString()"
    imports.append(f"print(fedsvc_client._proto.types_pb2.Delivery.FromString({same}).attempts)")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(imports)], cwd=ROOT, text=True, capture_output=True
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "3", "")


def test_the_client_needs_nothing_of_the_server() -> None:
    script = "import sys, fedsvc_client; print([m for m in sys.modules if m.split('.')[0] == 'fedsvc'])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_committed_stubs_are_fresh() -> None:
    done = tool(ROOT, "--check")
    assert done.returncode == 0, done.stdout


def test_the_check_names_what_is_stale_missing_or_left_over(tmp_path: Path) -> None:
    for folder in ("proto", *GENERATED):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/proto.py", tmp_path / "tools")
    server, stubs = (tmp_path / folder for folder in GENERATED)
    with (server / "types_pb2.py").open("a") as file:
        file.write("# edited\n")
    (stubs / "key_service_pb2.pyi").unlink()
    (stubs / "gone_service_pb2.py").touch()

    done = tool(tmp_path, "--check")
    assert done.returncode == 1
    named = [Path(name).name for name in done.stdout.strip().partition(": ")[2].split(", ")]
    assert named == ["gone_service_pb2.py", "key_service_pb2.pyi", "types_pb2.py"]

    (stubs / "gone_service_pb2.py").unlink()
    assert tool(tmp_path).returncode == 0
    assert tool(tmp_path, "--check").returncode == 0
