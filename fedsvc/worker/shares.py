"""How free slots are shared among the priorities: urgent is quick, and bulk never starves."""

from __future__ import annotations

from typing import Final

from fedsvc.queue.consumer import Shares

#: of twenty slots; what a priority does not use, the others get. What urgent ones take at their own bell
#: comes on top, and bulk is to keep a tenth of all.
WEIGHTS: Final = (12, 5, 3)


class ShareKeeper:
    """Weighted fair shares of whole slots: what rounding takes from a priority now, it gets later."""

    def __init__(self) -> None:
        self._owed = [0.0, 0.0, 0.0]

    def of(self, limit: int) -> Shares:
        """Shares of `limit` slots; they sum up to `limit`."""
        total = sum(WEIGHTS)
        for i, weight in enumerate(WEIGHTS):
            self._owed[i] += limit * weight / total
        # All debts together are `limit`, and none is a whole slot below nothing: these are not too many.
        shares = [max(0, int(owed)) for owed in self._owed]
        # Whole slots left over go to whom most is owed; at equal debts, to the more urgent.
        while sum(shares) < limit:
            most = max(range(3), key=lambda i: (self._owed[i] - shares[i], -i))
            shares[most] += 1
        for i, share in enumerate(shares):
            self._owed[i] -= share
        return Shares(limit, *shares)
