"""Takes in the requests of calls: within a time, each caller within its share of the places there are.

gRPC by itself waits for a request for as long as its caller likes, and holds one of FEDSVC_MAX_CALLS places
for it, before anybody has looked at who that is. So every method is served here as if its request were a
stream: what is refused is never read, and what is read has to come in time.

Nor does gRPC give up an answer that its caller does not take: HTTP/2 lets him say that he has no room for
a single byte. Its own limit of calls would be reached by one stranger who asks for our health like that, so
there is none: places are counted here, each until its answer is taken, for which there is a time too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError

from fedsvc.errors import FedsvcError, InvalidInput, Overloaded, Stopping, Unauthenticated
from fedsvc.server.call_log import bind
from fedsvc.server.caller import ANYBODY, Caller, serve
from fedsvc.server.errors import abort, status_of
from fedsvc.server.places import Places
from fedsvc.server.wire import has_more_fields

#: seconds for a request to come, and for an answer to be taken: of a caller that is known, and of others
PATIENCE_S: Final = 30.0
STRANGERS_PATIENCE_S: Final = 5.0
#: requests of callers that are not known which are read at the same time; one may be as long as the longest
MOST_STRANGERS: Final = 16
#: bytes of a request that brings no activity, and of one of a caller that is not known: to read millions of
#: small fields would stop all other calls for minutes
LARGEST: Final = 65_536
LARGEST_OF_STRANGERS: Final = 4096
#: fields of a request beside twice the inboxes that it may have, at most: more are not read, since one of two
#: bytes takes up a hundred in memory
_SPARE: Final = 1000
#: methods whose requests bring activities, and may be as large as gRPC lets them be
_BRINGING: Final = ("QueueActivity", "QueueActivities", "FanOutActivity", "CreateSchedule", "UpdateSchedule")


class Reception:
    def __init__(self, places: Places, fan_out: Callable[[Caller], int]) -> None:
        """`fan_out`: inboxes that a caller may bring at once."""
        self._places = places
        self._fan_out = fan_out
        self._strangers = 0

    def served(
        self, handler: Any, known: Caller, method: str, who: Callable[[], Caller | None]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The same method, with `known` as its caller, for as long as `who` says the same."""
        return self._handler(handler, known, method, who)

    def open(self, handler: Any, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """The same method, for anybody. When too many strangers are heard already, the request of one more is
        not read: it is taken for an empty one."""
        return self._handler(handler, None, method, lambda: None)

    def _handler(
        self, handler: Any, known: Caller | None, method: str, who: Callable[[], Caller | None]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        read, many = self._limited(handler.request_deserializer, known, method), handler.request_streaming

        async def asked(context: Any) -> Any:
            if many:
                request: Any = _messages(read, context)
            elif known is None:
                request = await self._of_a_stranger(read, context)
            else:
                request = await _one(read, context, PATIENCE_S)
            bind(method, known, request)
            return request

        async def answer(_: Any, context: Any) -> Any:
            try:
                call = _Call(self._places, known, context)
                response = await inner(await asked(context), context)
            except Overloaded as error:
                await abort(context, status_of(error))
            except grpc.aio.AbortError as error:
                raise _bare(error) from None
            call.answered()
            return response

        async def stream(_: Any, context: Any) -> None:
            try:
                call = _Call(self._places, known, context)
                # Written in this task: a generator that is left to gRPC may end in another one, later.
                async with aclosing(inner(await asked(context), context)) as responses:
                    async for response in responses:
                        if (now := who()) != known:
                            await abort(context, status_of(_changed(now)))
                        await context.write(response)
            except Overloaded as error:
                await abort(context, status_of(error))
            except grpc.aio.AbortError as error:
                raise _bare(error) from None
            call.answered()

        give = handler.response_serializer
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, response_serializer=give)
        return grpc.stream_unary_rpc_method_handler(answer, response_serializer=give)

    def _limited(self, read: Any, known: Caller | None, method: str) -> Any:
        """`read`, for no more than a request of this method may bring. Raises InvalidInput."""
        bringing = method.endswith(_BRINGING)
        most = LARGEST_OF_STRANGERS if known is None else LARGEST

        def limited(raw: bytes) -> Any:
            if known is not None and bringing:
                fields = 2 * self._fan_out(known) + _SPARE
                if len(raw) > 2 * fields and has_more_fields(raw, fields):
                    raise InvalidInput("request", f"has more than {fields} fields")
            elif len(raw) > most:
                raise InvalidInput("request", f"has {len(raw)} bytes; {most} are allowed")
            return read(raw)

        return limited

    async def _of_a_stranger(self, read: Any, context: Any) -> Any:
        if self._strangers >= MOST_STRANGERS:
            return read(b"")
        self._strangers += 1
        try:
            return await _one(read, context, STRANGERS_PATIENCE_S)
        finally:
            self._strangers -= 1


class Everybody(grpc.aio.ServerInterceptor):
    """For a server that anybody may call: nobody is known."""

    def __init__(self) -> None:
        self._reception = Reception(Places(0, "calls"), lambda _: 0)

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        return None if handler is None else self._reception.open(handler, handler_call_details.method)


class _Call:
    """One that is served, until gRPC is done with it."""

    __slots__ = ("_known", "_places", "_timer")

    def __init__(self, places: Places, known: Caller | None, context: Any) -> None:
        """Raises Overloaded if there is no place for it."""
        self._places = places
        self._known = known
        self._timer: asyncio.TimerHandle | None = None
        if known is not None:
            places.take(known)
            serve(known)
        context.add_done_callback(self._done)

    def answered(self) -> None:
        """From now on its caller has so much time to take the answer."""
        task: Any = asyncio.current_task()
        patience_s = STRANGERS_PATIENCE_S if self._known is None else PATIENCE_S
        self._timer = asyncio.get_running_loop().call_later(patience_s, task.cancel)

    def _done(self, _: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._known is not None:
            self._places.leave(self._known)


def refusal(handler: Any, error: FedsvcError, known: Caller = ANYBODY) -> grpc.RpcMethodHandler[Any, Any]:
    """A method that refuses `known` without reading the request."""
    status = status_of(error)

    async def refuse(requests: Any, context: Any) -> NoReturn:
        serve(known)
        await abort(context, status)

    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse)
    return grpc.stream_unary_rpc_method_handler(refuse)


def _bare(error: grpc.aio.AbortError) -> grpc.aio.AbortError:
    """Without where it was: gRPC keeps it with the call, to which those frames refer and to its request.
    That would stay in memory until cycles are looked for, which many calls bring about, not many bytes."""
    error.__context__ = None
    return error.with_traceback(None)


def _changed(now: Caller | None) -> FedsvcError:
    """What a stream ends with as its caller is another now, or nobody."""
    if now is None:
        return Unauthenticated("the token is not known any more")
    return Stopping("the rights of the token have changed; go on from the cursor")


async def _one(read: Any, context: Any, patience_s: float) -> Any:
    """The request of a method that has one."""
    try:
        async with asyncio.timeout(patience_s):
            # Not by the iterator of requests: its generator costs some 20 us a call.
            raw = await context.read()
    except TimeoutError:
        await abort(context, status_of(InvalidInput("request", f"did not come within {patience_s:g} s")))
    if raw is grpc.aio.EOF:
        await abort(context, status_of(InvalidInput("request", "is missing")))
    return await _message(raw, read, context)


async def _messages(read: Any, context: Any) -> AsyncIterator[Any]:
    while (raw := await context.read()) is not grpc.aio.EOF:
        yield await _message(raw, read, context)


async def _message(raw: bytes, read: Any, context: Any) -> Any:
    """What is no message is the caller's fault: gRPC itself would call it ours."""
    try:
        return read(raw)
    except InvalidInput as error:
        await abort(context, status_of(error))
    except (DecodeError, ValueError):
        await abort(context, status_of(InvalidInput("request", "is not a message of this method")))
