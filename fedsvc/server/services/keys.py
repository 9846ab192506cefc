"""KeyService: not built yet; calls carry their keys."""

from __future__ import annotations

from fedsvc.server.unbuilt import unbuilt
from fedsvc.v1.key_service_pb2_grpc import KeyServiceServicer


class KeyService(KeyServiceServicer):
    PutKey = unbuilt("PutKey")
    GetKey = unbuilt("GetKey")
    ListKeys = unbuilt("ListKeys")
    DeleteKey = unbuilt("DeleteKey")
    RotateKey = unbuilt("RotateKey")
