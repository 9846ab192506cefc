"""OperationsService: shows and steers the queue, for operators. Put together from its parts."""

from __future__ import annotations

from fedsvc.v1 import operations_service_pb2 as pb


class OperationsService:
    def __init__(self, *parts: object) -> None:
        """Each method of the contract is that of the one part which has it."""
        for method in pb.DESCRIPTOR.services_by_name["OperationsService"].methods:
            found = [getattr(part, method.name) for part in parts if hasattr(part, method.name)]
            if len(found) != 1:
                raise ValueError(f"{len(found)} parts have {method.name}")
            setattr(self, method.name, found[0])
