"""OperationsService: shows and steers the queue, for operators. Put together from its parts."""

from __future__ import annotations

from fedsvc.server.unbuilt import unbuilt, unbuilt_stream
from fedsvc.v1 import operations_service_pb2 as pb


class OperationsService:
    def __init__(self, *parts: object) -> None:
        """Each method of the contract is that of the one part which has it."""
        for method in pb.DESCRIPTOR.services_by_name["OperationsService"].methods:
            found = [getattr(part, method.name) for part in parts if hasattr(part, method.name)]
            if len(found) > 1:
                raise ValueError(f"several parts have {method.name}")
            missing = unbuilt_stream if method.server_streaming else unbuilt
            setattr(self, method.name, found[0] if found else missing(method.name).__get__(self))
