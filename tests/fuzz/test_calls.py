"""Generated calls of every method: no INTERNAL, no hang, no leak, and everything adds up afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from fedsvc.v1 import delivery_service_pb2 as pb
from fedsvc.v1 import operations_service_pb2 as operations_pb
from fuzz.calls import METHODS, Call, Caller, Defect, Footprint, fuzz
from fuzz.requests import PEMS
from fuzz.serving import Serving, serving

SEED = 1
WARM_UP, CALLS = 500, 1500
#: what a server may grow by after the warm-up: caches fill, and RSS does not shrink
MOST_GROWTH_MB = 60
MOST_FILES = 20

QUEUE = "/fedsvc.v1.DeliveryService/QueueActivity"
STATS = "/fedsvc.v1.OperationsService/GetQueueStats"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("fuzz")) as found:
        yield found


def request(inbox: str = "https://a.example/inbox") -> pb.QueueActivityRequest:
    activity = b'{"id":"https://me.example/sound","type":"Like","actor":"https://me.example/u","object":"https://a.example/1"}'
    key = pb.SigningKey(key_id="https://me.example/u#main-key", private_key_pem=PEMS[0])
    return pb.QueueActivityRequest(activity=activity, inbox=inbox, signing_key=key)


@pytest.mark.alone
def test_whatever_is_called_nothing_breaks_hangs_or_leaks(served: Serving) -> None:
    print(f"seed {SEED}: cd tests && python -m fuzz --calls {WARM_UP + CALLS} --seed {SEED}")
    caller = Caller(served.channel, served.token)
    fuzz(caller, WARM_UP, SEED + 1)
    before = Footprint.of(served.fedsvc.process.pid)
    fuzz(caller, CALLS, SEED)
    after = Footprint.of(served.fedsvc.process.pid)
    assert served.fedsvc.process.poll() is None
    assert served.complaints == []
    assert set(caller.methods) >= {path.rpartition("/")[2] for path in METHODS}, "every method was called"
    assert caller.answers["OK"] > (WARM_UP + CALLS) / 20, "some calls come through"
    assert after.megabytes - before.megabytes < MOST_GROWTH_MB
    assert after.files - before.files < MOST_FILES
    answer = served.channel.unary_unary(QUEUE)(
        request().SerializeToString(), metadata=(("authorization", f"Bearer {served.token}"),), timeout=10
    )
    assert pb.QueueActivityResponse.FromString(answer).delivery.delivery_id
    stats = operations_pb.GetQueueStatsResponse.FromString(
        served.channel.unary_unary(STATS)(
            b"", metadata=(("authorization", f"Bearer {served.token}"),), timeout=10
        )
    )
    assert stats.conserved
    assert stats.accepted > 50


@pytest.mark.parametrize("path", sorted(METHODS))
@pytest.mark.parametrize(
    "garbage", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe"], ids=["wire", "length", "utf-8"]
)
def test_what_is_no_request_is_refused_as_such(served: Serving, path: str, garbage: bytes) -> None:
    caller = Caller(served.channel, served.token)
    code = caller.make(Call(path, garbage))
    fits = garbage[-1:] == b"\xfe" and code is not grpc.StatusCode.INVALID_ARGUMENT
    # A field that is no text takes bytes that are none; everything else is no message at all.
    assert code is grpc.StatusCode.INVALID_ARGUMENT or fits


def test_a_defect_would_be_told(served: Serving) -> None:
    class Broken(Caller):
        def _one(self, call: Call, metadata: object) -> tuple[grpc.StatusCode, str]:
            return (grpc.StatusCode.INTERNAL if len(call.request) > 30 else grpc.StatusCode.OK), "boom"

    with pytest.raises(Defect, match="INTERNAL 'boom' for /fedsvc"):
        fuzz(Broken(served.channel), 200, SEED)
