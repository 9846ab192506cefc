"""The page of the API: services, calls, messages and errors, from the contract's own comments."""

import re
from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from google.rpc import code_pb2

from fedsvc.errors import InvalidInput
from fedsvc.server.auth import EVERYWHERE, rights
from fedsvc.server.errors import TOLD
from tools.docs.checks import slug
from tools.docs.contract import INVALID, Source, contract

_HEAD = """\
# API

The contract `fedsvc.v1`, generated from `proto/fedsvc/v1` and its comments by `make docs`. A server also
answers `grpc.health.v1.Health` (by the full names of the services below, or none for all) and, under
`fedsvc dev` or with `fedsvc server --reflection`, reflection.
[Python's client](python-client.md) has a method for each call.

Tokens travel as metadata `authorization: Bearer TOKEN`; the scope that a call needs stands with it
([callers](../callers.md)). Everything is proto3: what is left out is empty, 0 or false.

## Errors

A call that fails has a `google.rpc.Status` in `grpc-status-details-bin`, always with an `ErrorInfo` (domain
`fedsvc`, and the reason below), with a `BadRequest` that names the field where the input is at fault, and
with a `RetryInfo` where it helps to come back.

| code | reason | what it means |
|---|---|---|
"""
_KINDS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}
_OTHERS = {
    ".google.protobuf.Timestamp": "Timestamp",
    ".google.protobuf.Duration": "Duration",
    ".google.protobuf.Struct": "Struct",
}


def api_page() -> str:
    sources = contract()
    lines = [*_HEAD.splitlines(), *_errors()]
    for source in sources:
        for i, service in enumerate(source.file.service):
            lines += _service(source, i, service)
    lines += ["", "## Messages"]
    lines += _sorted(_messages(sources))
    lines += ["", "## Enums"]
    lines += _sorted(_enums(sources))
    return "\n".join(lines) + "\n"


def _sorted(parts: Iterator[tuple[str, list[str]]]) -> list[str]:
    """Sections in the order of their names."""
    return [line for _, lines in sorted(parts) for line in lines]


def _errors() -> Iterator[str]:
    reasons = ", ".join(f"`{reason}`" for reason in INVALID)
    yield f"| INVALID_ARGUMENT | {reasons} | {_first(InvalidInput)} |"
    for kind, code, reason in TOLD:
        yield f"| {code_pb2.Code.Name(code)} | `{reason}` | {_first(kind)} |"
    yield "| INTERNAL | `INTERNAL` | A defect of the server; its log has it. |"


def _first(kind: type[Exception]) -> str:
    """The docstring in one line, without what it says of the exception's attributes."""
    sentences = re.split(r"(?<=[.;]) ", " ".join((kind.__doc__ or "").split()))
    return " ".join(sentence for sentence in sentences if "`" not in sentence).rstrip(".;") + "."


def _service(source: Source, i: int, service: ServiceDescriptorProto) -> Iterator[str]:
    path = (FileDescriptorProto.SERVICE_FIELD_NUMBER, i)
    yield from ("", f"## {service.name}", "", source.comment(*path))
    for j, method in enumerate(service.method):
        comment = source.comment(*path, ServiceDescriptorProto.METHOD_FIELD_NUMBER, j)
        yield from _method(f"{source.file.package}.{service.name}", method, comment)


def _method(service: str, method: MethodDescriptorProto, comment: str) -> Iterator[str]:
    full = f"/{service}/{method.name}"
    yield from ("", f"### {method.name}", "", comment, "")
    scopes = " or ".join(f"`{scope}`" for scope in sorted(rights(full)))
    everywhere = ", and rights to all origins" if full in EVERYWHERE else ""
    streamed = "a stream of " if method.server_streaming else ""
    yield (
        f"Takes {_link(method.input_type)}, gives {streamed}{_link(method.output_type)}. "
        f"Scope: {scopes}{everywhere}."
    )


def _messages(sources: tuple[Source, ...]) -> Iterator[tuple[str, list[str]]]:
    for source in sources:
        for i, message in enumerate(source.file.message_type):
            path = (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, i)
            yield message.name, list(_message(source, path, message))


def _message(source: Source, path: tuple[int, ...], message: DescriptorProto) -> Iterator[str]:
    yield from ("", f"### {message.name}", "", source.comment(*path))
    if not message.field:
        return
    yield from ("", "| field | | type | what it is |", "|---|---|---|---|")
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for i, field in enumerate(message.field):
        comment = " ".join(source.comment(*path, DescriptorProto.FIELD_FIELD_NUMBER, i).split())
        if field.HasField("oneof_index") and not field.proto3_optional:
            comment += f" (one of `{message.oneof_decl[field.oneof_index].name}`)"
        yield f"| `{field.name}` | {field.number} | {_type(field, maps)} | {comment.replace('|', '&#124;')} |"


def _type(field: FieldDescriptorProto, maps: dict[str, DescriptorProto]) -> str:
    if (entry := maps.get(field.type_name.rpartition(".")[2])) is not None:
        key, value = entry.field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    name = _link(field.type_name) if field.type_name else _KINDS[field.type]
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _enums(sources: tuple[Source, ...]) -> Iterator[tuple[str, list[str]]]:
    for source in sources:
        for i, enum in enumerate(source.file.enum_type):
            path = (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, i)
            yield enum.name, list(_enum(source, path, enum))
        for i, message in enumerate(source.file.message_type):
            above = (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, i, DescriptorProto.ENUM_TYPE_FIELD_NUMBER)
            for j, enum in enumerate(message.enum_type):
                yield enum.name, list(_enum(source, (*above, j), enum))


def _enum(source: Source, path: tuple[int, ...], enum: EnumDescriptorProto) -> Iterator[str]:
    yield from ("", f"### {enum.name}", "", source.comment(*path), "")
    yield from ("| value | | what it is |", "|---|---|---|")
    for i, value in enumerate(enum.value):
        comment = " ".join(source.comment(*path, EnumDescriptorProto.VALUE_FIELD_NUMBER, i).split())
        yield f"| `{value.name}` | {value.number} | {comment} |"


def _link(type_name: str) -> str:
    """A type of the contract, or one that everybody knows."""
    if type_name in _OTHERS:
        return f"`{_OTHERS[type_name]}`"
    name = type_name.rpartition(".")[2]
    return f"[{name}](#{slug(name)})"
