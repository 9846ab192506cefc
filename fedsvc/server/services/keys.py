"""KeyService: keeps signing keys, so that calls need only name them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from fedsvc.domain.inbox import origin_of
from fedsvc.domain.keys import PrivateKey
from fedsvc.errors import InvalidKey, KeyInUse, NotFound
from fedsvc.queue.key_registry import KeyRegistry, RegisteredKey, position_of
from fedsvc.queue.schedules import Schedules
from fedsvc.server import convert, pages
from fedsvc.server.audit import Audit
from fedsvc.server.caller import allowed_origins, caller
from fedsvc.server.errors import rpc
from fedsvc.server.fields import host_name, request_name
from fedsvc.server.intake import Intake
from fedsvc.v1 import key_service_pb2 as pb
from fedsvc.v1.key_service_pb2_grpc import KeyServiceServicer

#: schedules that a refusal names
_NAMED: Final = 3


class KeyService(KeyServiceServicer):
    def __init__(self, intake: Intake, registry: KeyRegistry, schedules: Schedules, audit: Audit) -> None:
        self._audit = audit
        self._intake = intake
        self._registry = registry
        self._schedules = schedules

    @rpc
    async def PutKey(self, request: pb.PutKeyRequest, context: Any) -> pb.PutKeyResponse:
        key_id = _key_id(request.key_id)
        key = await self._registry.put(key_id, await self._checked(request.private_key_pem))
        await self._audit.record("key.put", key_id, fingerprint=key.fingerprint)
        return pb.PutKeyResponse(key=convert.key(key))

    @rpc
    async def GetKey(self, request: pb.GetKeyRequest, context: Any) -> pb.GetKeyResponse:
        return pb.GetKeyResponse(key=convert.key(await self._registry.get(_key_id(request.key_id))))

    @rpc
    async def ListKeys(self, request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:
        origin = host_name("origin", request.origin) if request.origin else ""
        size = pages.page_size(request.page_size)
        after = pages.decode(request.page_token, origin, read=pages.text) or ""
        keys = await self._visible(origin, after, size + 1)
        response = pb.ListKeysResponse(keys=[convert.key(key) for key in keys[:size]])
        if len(keys) > size:
            response.next_page_token = pages.encode(position_of(keys[size - 1].key_id), origin)
        return response

    @rpc
    async def DeleteKey(self, request: pb.DeleteKeyRequest, context: Any) -> pb.DeleteKeyResponse:
        key_id = _key_id(request.key_id)
        if not request.when_unused:
            await self._refuse_if_scheduled(key_id)
        deferred = await self._registry.delete(
            key_id, when_unused=request.when_unused, request_id=request_name(request.request_id)
        )
        await self._audit.record("key.delete", key_id, deferred=deferred)
        return pb.DeleteKeyResponse(deferred=deferred)

    @rpc
    async def RotateKey(self, request: pb.RotateKeyRequest, context: Any) -> pb.RotateKeyResponse:
        key_id = _key_id(request.key_id)
        key = await self._registry.rotate(key_id, await self._checked(request.private_key_pem))
        await self._audit.record("key.rotate", key_id, fingerprint=key.fingerprint)
        return pb.RotateKeyResponse(key=convert.key(key))

    async def _refuse_if_scheduled(self, key_id: str) -> None:
        """One that is made at the same time may be missed: its last error says so. Raises KeyInUse."""
        with suppress(NotFound):  # that, or that it is deleted already, is for the registry to say
            if (await self._registry.get(key_id)).leaving:
                return
            ids = await self._schedules.signing_with(key_id)
            if ids:
                named = ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED} more" if ids[_NAMED:] else "")
                raise KeyInUse(
                    f"{named}: schedules that sign with key {key_id}; change or delete them, "
                    "or delete it when_unused all the same"
                )

    async def _checked(self, pem: str) -> PrivateKey:
        try:
            return await self._intake.checked(pem)
        except InvalidKey as error:
            raise InvalidKey("private_key_pem", error.problem) from None

    async def _visible(self, origin: str, after: str, limit: int) -> list[RegisteredKey]:
        """Of the origins that the caller has rights to, in order."""
        allowed = allowed_origins()
        if allowed is None:
            return await self._registry.list(origin=origin, after=after, limit=limit)
        found: list[RegisteredKey] = []
        for own in sorted(allowed):
            # What is after a position of another origin is all of this one, or nothing of it.
            passed = after.partition(" ")[0]
            if len(found) >= limit or (origin and own != origin) or own < passed:
                continue
            start = after if own == passed else ""
            found += await self._registry.list(origin=own, after=start, limit=limit - len(found))
        return found


def _key_id(text: str) -> str:
    """Of a request, of an origin that the caller may sign for. Raises InvalidKey, PermissionDenied."""
    if not text:
        raise InvalidKey("key_id", "is required")
    caller().check_origin("key_id", origin_of(text, "key_id"))
    return text
