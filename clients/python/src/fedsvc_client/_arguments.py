"""What callers pass, looked at before it travels: what cannot is InvalidRequest, and the argument named."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fedsvc_client._exceptions import FedsvcError, InvalidRequest

M = TypeVar("M", bound=Message)

#: seconds that anything may take at most
LONGEST_TIMEOUT = 86_400 * 365
#: characters that a request id may have at most
LONGEST_REQUEST_ID = 128
_WHOLE = "whole number"
_WANTED = {
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_INT32: _WHOLE,
    FieldDescriptor.CPPTYPE_INT64: _WHOLE,
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_BOOL: "bool",
}
#: what a call is about: the server cannot choose that by itself
_SUBJECTS = frozenset({"activity_id", "delivery_id", "host", "key_id", "operation_id", "schedule_id"})


def build(kind: type[M], **fields: Any) -> M:
    """The message of these fields, which have the names of the arguments. None stands for the default, where
    there is one."""
    for name in _SUBJECTS & fields.keys():
        whole_text(name, fields[name])
    try:
        return kind(**fields)
    except (TypeError, ValueError, OverflowError):
        for name, value in fields.items():
            try:
                kind(**{name: value})
            except (TypeError, ValueError, OverflowError):
                raise InvalidRequest(f"{name} {_problem(kind, name, value)}") from None
        raise


def _problem(kind: type[Message], name: str, value: Any) -> str:
    wanted = _WANTED.get(kind.DESCRIPTOR.fields_by_name[name].cpp_type, "such thing")
    if wanted == "text" and isinstance(value, str):
        return "has half a character (a lone surrogate)"
    if wanted == _WHOLE and isinstance(value, int):
        return "is out of range"
    return f"is no {wanted} but {type(value).__name__}"


def whole_text(name: str, text: Any) -> str:
    """`text`, if it is one that can be sent: it may have half a character."""
    if not isinstance(text, str):
        raise InvalidRequest(f"{name} is no text but {type(text).__name__}")
    if not text.isascii():  # nearly all are
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"{name} has half a character (a lone surrogate)") from None
    return text


def optional_text(name: str, text: Any) -> str:
    """Likewise; empty for None."""
    return "" if text is None else whole_text(name, text)


def several(name: str, given: Any) -> list[str]:
    """Texts. A single one is one, not as many as it has characters."""
    if isinstance(given, str):
        return [whole_text(name, given)]
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise InvalidRequest(f"{name} must be several texts, not {type(given).__name__}")
    return [whole_text(f"{name}[{index}]", text) for index, text in enumerate(given)]


def choices(name: str, given: Any, enum: Any, prefix: str, kind: str) -> list[Any]:
    """Numbers of values of an enumeration, of which callers leave out the prefix that all have. `kind`: what
    each is, with its article."""
    found = []
    for value in several(name, given):
        try:
            found.append(enum.Value(f"{prefix}{value.upper()}"))
        except ValueError:
            raise InvalidRequest(f"{name}: {value!r} is not {kind}") from None
    return found


def inbox_list(inboxes: Iterable[str]) -> list[str]:
    """Of a fan-out, which a single text is none for."""
    if isinstance(inboxes, str):
        raise InvalidRequest("inboxes must be several, such as a list; queue_activity takes one")
    return several("inboxes", inboxes)


def new_request_id() -> str:
    return str(uuid.uuid4())


def named(request_id: str | None) -> str:
    """What names a call: what its caller gave, or a new name."""
    return optional_text("request_id", request_id) or new_request_id()


def of_kind(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise InvalidRequest(f"{name} is no {kind.__name__} but {type(value).__name__}")


def seconds(name: str, value: Any, error: type[FedsvcError] = InvalidRequest) -> float:
    """For which something may last. Raises `error` for what is none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= LONGEST_TIMEOUT:
        raise error(f"{name} must be a number of seconds above 0 and up to a year")
    return float(value)
