"""How a proof is told."""

from __future__ import annotations

import statistics


def report(
    title: str, rows: list[str], name: str, values: list[float], limit: float, *, worst: bool = False
) -> bool:
    """Print the table; whether the median (or the worst) of `values` is within `limit`."""
    value = max(values) if worst else statistics.median(values)
    holds = value <= limit
    print(f"\n{title}")
    for row in rows:
        print(f"  {row}")
    shown = ", ".join(f"{v:.2f}" for v in values)
    print(f"  {name}: {shown}; at most {limit:g} {'ok' if holds else 'FAILED'}", flush=True)
    return holds
