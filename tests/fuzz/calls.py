"""Calls of a real server with made requests, and what must not come of them."""

from __future__ import annotations

import base64
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz.requests import GIVEN, ODD_TEXT, message, methods, sound

#: seconds that a call may take
PATIENCE = 10.0
#: seconds for which a stream is listened to
LISTEN = 0.05
#: what a caller may be told; everything else is a defect
GOOD = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
METHODS = methods()
_GIVEN_FIELDS = ("delivery_id", "next_page_token", "cursor", "operation_id", "schedule_id")


class Defect(AssertionError):
    """A call had an answer that no call may have."""


@dataclass(frozen=True)
class Call:
    path: str
    request: bytes
    metadata: tuple[tuple[str, str | bytes], ...] = ()

    def __repr__(self) -> str:
        return f"{self.path} {self.metadata} {base64.b64encode(self.request).decode()}"


def _filled(made: Message, given_: list[str]) -> Message:
    """With what the server has given in the places that stand for it."""
    for described, value in made.ListFields():
        if described.type == FieldDescriptor.TYPE_MESSAGE:
            if described.message_type is not None and described.message_type.full_name.startswith("google."):
                continue
            for inner in value if described.is_repeated else [value]:
                _filled(inner, given_)
        elif described.type == FieldDescriptor.TYPE_STRING:
            if described.is_repeated:
                value[:] = [_chosen(text, given_) for text in value]
            else:
                setattr(made, described.name, _chosen(value, given_))
    return made


def _chosen(text: str, given_: list[str]) -> str:
    if not text.startswith(GIVEN):
        return text
    return given_[int(text.removeprefix(GIVEN)) % len(given_)] if given_ else ""


@dataclass
class Caller:
    """Makes calls, one after the other, and counts."""

    channel: Any  # a grpc.Channel; its types do not know methods without a codec
    token: str = ""
    methods: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    #: ids and tokens that answers have had, the latest
    given: list[str] = field(default_factory=list)

    def make(self, call: Call) -> grpc.StatusCode:
        """Raises Defect."""
        stream = METHODS[call.path].server_streaming if call.path in METHODS else False
        own = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        metadata: Any = (*own, *call.metadata)
        begun = time.monotonic()
        code, words = self._stream(call, metadata) if stream else self._one(call, metadata)
        seconds = time.monotonic() - begun
        self.methods[call.path.rpartition("/")[2]] += 1
        self.answers[code.name] += 1
        if seconds > self.slowest[0]:
            self.slowest = (seconds, call.path)
        if code not in GOOD:
            raise Defect(f"{code.name} {words!r} for {call!r}")
        if code is grpc.StatusCode.UNIMPLEMENTED and call.path in METHODS:
            raise Defect(f"UNIMPLEMENTED {words!r} for {call!r}")
        return code

    def _one(self, call: Call, metadata: Any) -> tuple[grpc.StatusCode, str]:
        try:
            answer = self.channel.unary_unary(call.path)(call.request, metadata=metadata, timeout=PATIENCE)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        except ValueError:  # metadata that cannot even be sent
            return grpc.StatusCode.INVALID_ARGUMENT, ""
        if call.path in METHODS:
            self._note(GetMessageClass(METHODS[call.path].output_type).FromString(answer))
        return grpc.StatusCode.OK, ""

    def _stream(self, call: Call, metadata: Any) -> tuple[grpc.StatusCode, str]:
        heard = self.channel.unary_stream(call.path)(call.request, metadata=metadata, timeout=LISTEN)
        try:
            for _ in zip(range(3), heard, strict=False):
                pass
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:  # it was silent, as it may be
                return grpc.StatusCode.OK, ""
            return error.code(), error.details() or ""
        heard.cancel()
        return grpc.StatusCode.OK, ""

    def _note(self, answer: Message) -> None:
        for described, value in answer.ListFields():
            if described.name in _GIVEN_FIELDS and isinstance(value, str):
                self.given = [value, *self.given[:20]]
            elif described.type == FieldDescriptor.TYPE_MESSAGE:
                if described.message_type.full_name.startswith("google."):
                    continue
                for inner in list(value)[:3] if described.is_repeated else [value]:
                    self._note(inner)


_METADATA = st.one_of(
    st.just(()),
    st.lists(
        st.tuples(
            st.sampled_from(
                ("traceparent", "x-request-id", "authorization", "grpc-accept-encoding", "user-agent")
            ),
            st.one_of(
                st.sampled_from(
                    ("", "00-0-0-00", "Bearer x", "Basic eA==", "00-" + "a" * 32 + "-" + "b" * 16 + "-01")
                ),
                st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
            ),
        ),
        max_size=2,
    ).map(tuple),
)


def fuzz(caller: Caller, calls: int, number: int) -> None:
    """So many calls, which follow from `number`. Raises Defect with the smallest call that shows one."""
    paths = sorted(METHODS)

    @seed(number)
    @settings(
        max_examples=calls,
        deadline=None,
        database=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(paths))
        metadata = data.draw(_METADATA) if not data.draw(st.integers(0, 9)) else ()
        kind = data.draw(st.integers(0, 39))
        if not kind:
            request = data.draw(st.binary(max_size=200))
        else:
            make = sound if kind >= 25 else message
            made = data.draw(make(METHODS[path].input_type))
            request = _filled(made, caller.given).SerializeToString()
            if kind == 1:
                request = request[: len(request) // 2]
        if kind == 2:
            path = f"/{data.draw(ODD_TEXT)}" if data.draw(st.booleans()) else path + "X"
            if not path.isascii() or not path.isprintable():
                path = "/fedsvc.v1.Nothing/Nothing"
        caller.make(Call(path, request, metadata))

    one()


@dataclass(frozen=True)
class Footprint:
    """What a process takes up."""

    megabytes: float
    files: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(list(Path(f"/proc/{pid}/fd").iterdir())))
