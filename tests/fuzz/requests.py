"""Requests of every method, made from the contract itself, so that what is new there is covered too.

Names of fields say what a value should look like; half of the time it does, else it is anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fedsvc.v1 import delivery_service_pb2, key_service_pb2, operations_service_pb2

MODULES = (delivery_service_pb2, operations_service_pb2, key_service_pb2)
#: stands for the nth of what the server has given; see calls.py
GIVEN = "@given"
#: what would stop the fuzzer itself, or make a run depend on how long it takes
_HOSTS = (
    "a.example",
    "b.example",
    "down.example",
    "127.0.0.1",
    "[::1]",
    "b\N{LATIN SMALL LETTER U WITH DIAERESIS}.example",
)
_SAMPLES = Path(__file__).parents[1] / "data" / "activities"


def methods() -> dict[str, MethodDescriptor]:
    """By path."""
    return {
        f"/{service.full_name}/{method.name}": method
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def _pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8) -> str:
    return str(key.private_bytes(Encoding.PEM, form, NoEncryption()).decode())


_RSA = rsa.generate_private_key(65537, 2048)
PEMS = (
    _pem(ed25519.Ed25519PrivateKey.generate()),
    _pem(_RSA),
    _pem(_RSA, PrivateFormat.TraditionalOpenSSL),
)
#: anything that a protobuf string can hold, and what is known to make trouble
ODD_TEXT = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        (
            "",
            " ",
            "\0",
            "\n",
            "\u202e",
            "\ufeff",
            "%00",
            "../..",
            "{}",
            "null",
            "-1",
            "' OR 1=1 --",
            "*",
            "[",
            "\\",
            "\N{FULLWIDTH LATIN SMALL LETTER A}",
            "x" * 3000,
            "\N{PILE OF POO}" * 200,
            "${jndi:ldap://a}",
            "%s%n",
        )
    ),
)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


_URL = st.one_of(
    st.builds("https://{}/{}".format, st.sampled_from(_HOSTS), st.integers(0, 30)),
    st.sampled_from(
        (
            "https://me.example/u/ada",
            "https://me.example/u/ada#main-key",
            "http://a.example/x",
            "https://a.example:8443/?q",
            "ftp://a.example/",
            "https://",
            "//a.example/",
            "https://a.example/%ZZ",
            "https://0x7f000001/",
            "https://a.example/ x",
        )
    ),
    ODD_TEXT,
)
_ANY_JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        ODD_TEXT,
        _URL,
        st.sampled_from(("Like", "Create", "Undo", "Tombstone")),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from(("id", "type", "actor", "object", "target", "@context", "to")), ODD_TEXT
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=12,
)


@st.composite
def _like(draw: st.DrawFn) -> bytes:
    kind = draw(
        st.sampled_from(("Like", "Create", "Update", "Delete", "Follow", "Undo", "Announce", "Flag", "X"))
    )
    sent = {
        "id": f"https://me.example/a/{draw(st.integers(0, 50))}",
        "type": kind,
        "actor": "https://me.example/u/ada",
        "object": draw(st.one_of(st.just("https://a.example/1"), _ANY_JSON)),
    }
    for _ in range(draw(st.integers(0, 2))):
        sent[draw(st.sampled_from(("id", "type", "actor", "object", "target", "audience")))] = draw(_ANY_JSON)
    return _json(sent)


@st.composite
def _mutated(draw: st.DrawFn, originals: Iterable[bytes]) -> bytes:
    whole = bytearray(draw(st.sampled_from(sorted(originals))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(whole) - 1))
        whole[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
        whole = whole or bytearray(b"x")
    return bytes(whole)


_ACTIVITY = st.one_of(
    _like(),
    _like(),
    _mutated([path.read_bytes() for path in _SAMPLES.glob("*.json")]),
    st.builds(_json, _ANY_JSON),
    st.sampled_from(
        (
            b"",
            b"{",
            b'{"id":"a","id":"b"}',
            b"[" * 50_000,
            b'{"a":' * 5000,
            b'{"id":' + b"9" * 5000 + b"}",
            b"\xff\xfe{}",
            b'{"id":"\\ud800"}',
            b"x" * 200_000,
            b'{"type":NaN}',
        )
    ),
)
_KEY_ID = st.one_of(
    st.sampled_from(
        ("https://me.example/u/ada#main-key", "https://me.example/u/bob#k", "https://other.example/u/x#k")
    ),
    _URL,
)
_PEM = st.one_of(
    st.sampled_from(PEMS),
    st.just(""),
    _mutated([pem.encode() for pem in PEMS]).map(lambda b: b.decode("latin-1")),
    ODD_TEXT,
)
_GIVEN = st.one_of(st.integers(0, 20).map(lambda n: f"{GIVEN}{n}"), ODD_TEXT)
_TEXTS: dict[str, SearchStrategy[str]] = {
    "inbox": _URL,
    "inboxes": _URL,
    "key_id": _KEY_ID,
    "private_key_pem": _PEM,
    "page_token": _GIVEN,
    "cursor": _GIVEN,
    "delivery_id": _GIVEN,
    "delivery_ids": _GIVEN,
    "operation_id": _GIVEN,
    "schedule_id": _GIVEN,
    "activity_id": st.one_of(st.integers(0, 50).map(lambda n: f"https://me.example/a/{n}"), ODD_TEXT),
    "host": st.one_of(st.sampled_from(_HOSTS), ODD_TEXT),
    "hosts": st.one_of(st.sampled_from(_HOSTS), ODD_TEXT),
    "origin": st.one_of(st.just("me.example"), ODD_TEXT),
    "request_id": st.one_of(st.just(""), st.integers(0, 50).map("r{}".format), ODD_TEXT),
    "ordering_key": st.one_of(st.just(""), st.sampled_from(("a", "b")), ODD_TEXT),
    "supersede_key": st.one_of(st.just(""), st.sampled_from(("a", "b")), ODD_TEXT),
    "content_type": st.one_of(st.just(""), st.just("application/activity+json"), ODD_TEXT),
    "cron": st.one_of(st.sampled_from(("* * * * *", "0 4 * * 1", "61 * * * *", "@daily")), ODD_TEXT),
    "time_zone": st.one_of(st.sampled_from(("", "UTC", "Europe/Berlin", "../etc/passwd")), ODD_TEXT),
    "activity_type": st.one_of(st.just("Like"), ODD_TEXT),
}
#: for calls that are to come through, so that there is something in the queue
_SOUND: dict[str, SearchStrategy[Any]] = {
    "activity": st.builds(
        lambda n, kind: _json(
            {
                "id": f"https://me.example/a/{n}",
                "type": kind,
                "actor": "https://me.example/u/ada",
                "object": f"https://a.example/{n}",
            }
        ),
        st.integers(0, 50),
        st.sampled_from(("Like", "Follow", "Delete", "Announce", "Undo")),
    ),
    "inbox": st.builds("https://{}/{}".format, st.sampled_from(_HOSTS), st.integers(0, 30)),
    "inboxes": st.builds("https://{}/{}".format, st.sampled_from(_HOSTS), st.integers(0, 30)),
    "key_id": st.just("https://me.example/u/ada#main-key"),
    "private_key_pem": st.sampled_from(PEMS),
    "host": st.sampled_from(_HOSTS),
    "hosts": st.sampled_from(_HOSTS),
    "origin": st.just("me.example"),
    "activity_id": st.integers(0, 50).map("https://me.example/a/{}".format),
    "delivery_id": st.integers(0, 20).map(lambda n: f"{GIVEN}{n}"),
    "delivery_ids": st.integers(0, 20).map(lambda n: f"{GIVEN}{n}"),
    "request_id": st.integers(0, 5000).map("r{}".format),
    "cron": st.just("0 4 * * 1"),
    "schedule_id": st.integers(0, 9).map("s{}".format),
}
_INTS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


def _scalar(field: FieldDescriptor) -> SearchStrategy[Any]:
    if field.type in _INTS:
        least, most = _INTS[field.type]
        small = st.integers(max(-1, least), 100)
        return st.one_of(small, small, st.sampled_from((least, most, 1000, 1001)), st.integers(least, most))
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return _TEXTS.get(field.name, ODD_TEXT)
        case FieldDescriptor.TYPE_BYTES:
            return _ACTIVITY
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
            return st.one_of(st.floats(0, 100), st.floats())
        case FieldDescriptor.TYPE_ENUM:
            known = sorted(value.number for value in field.enum_type.values)
            return st.one_of(st.sampled_from(known), st.sampled_from((-1, 99, 2**31 - 1)))
        case _:
            pass
    raise NotImplementedError(f"{field.full_name} is of a type that the fuzzer does not know")


def _value(field: FieldDescriptor, depth: int) -> SearchStrategy[Any]:
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return _scalar(field)
    kind = field.message_type
    assert kind is not None
    match kind.full_name:
        case "google.protobuf.Timestamp" | "google.protobuf.Duration":
            # Around the start of the run too: what is due at once, and what is over.
            seconds = st.one_of(
                st.integers(-10, 10_000),
                st.just(2_000_000_000),
                st.sampled_from((-(2**63), 2**63 - 1, 253402300800)),
            )
            nanos = st.one_of(st.just(0), st.sampled_from((-1, 999_999_999, 2**31 - 1)))
            return st.builds(GetMessageClass(kind), seconds=seconds, nanos=nanos)
        case "google.protobuf.Struct":
            return st.dictionaries(ODD_TEXT, st.one_of(ODD_TEXT, st.floats(), st.none()), max_size=3).map(
                _struct
            )
        case _:
            return message(kind, depth + 1)


def _struct(values: dict[str, Any]) -> Message:
    made = Struct()
    made.update(values)
    return made


@st.composite
def sound(draw: st.DrawFn, kind: Descriptor) -> Message:
    """One that a caller who knows the contract could send: nothing but what it needs."""
    made = GetMessageClass(kind)()
    for field in kind.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            inner = field.message_type
            if inner is not None and inner.name in ("SigningKey", "Schedule", "DeadLetterFilter"):
                getattr(made, field.name).CopyFrom(draw(sound(inner)))
            elif inner is not None and inner.name == "QueueActivityRequest":
                getattr(made, field.name).extend(draw(st.lists(sound(inner), min_size=1, max_size=5)))
        elif field.name in _SOUND and not (field.containing_oneof and draw(st.booleans())):
            if field.is_repeated:
                value = draw(st.lists(_SOUND[field.name], min_size=1, max_size=12))
                getattr(made, field.name).extend(value)
            else:
                setattr(made, field.name, draw(_SOUND[field.name]))
    return made


@st.composite
def message(draw: st.DrawFn, kind: Descriptor, depth: int = 0) -> Message:
    """Any message of this kind; each field is there three times out of four."""
    made = GetMessageClass(kind)()
    if depth > 4:
        return made
    for field in kind.fields:
        if not draw(st.integers(0, 3)):
            continue
        if (
            field.containing_oneof is not None
            and made.WhichOneof(field.containing_oneof.name)
            and draw(st.booleans())
        ):
            continue
        value = _value(field, depth)
        if field.is_repeated:
            many = draw(st.lists(value, max_size=draw(st.sampled_from((1, 3, 12)))))
            getattr(made, field.name).extend(many)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(made, field.name).CopyFrom(draw(value))
        else:
            setattr(made, field.name, draw(value))
    return made
