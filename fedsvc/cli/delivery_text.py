"""A delivery as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsvc.cli.output import moment

if TYPE_CHECKING:
    from fedsvc_client import Delivery


def delivery_text(delivery: Delivery) -> str:
    """All of it, and every attempt."""
    facts = (
        ("delivery", delivery.delivery_id),
        ("state", delivery.state.lower()),
        ("activity", f"{delivery.activity_type} {delivery.activity_id}"),
        ("actor", delivery.actor),
        ("inbox", delivery.inbox),
        ("key", delivery.key_id),
        ("accepted", moment(delivery.accept_time)),
        ("next try", moment(delivery.next_attempt_time)),
        ("ended", moment(delivery.complete_time)),
        ("reason", delivery.reason.lower()),
        ("status", str(delivery.http_status or "-")),
        ("answer", delivery.response_snippet or "-"),
    )
    lines = [f"{name:<9} {value or '-'}" for name, value in facts]
    lines.append("attempts")
    for attempt in delivery.attempt_history:
        took = f"{attempt.latency.total_seconds():.3f} s"
        status = attempt.http_status or "-"
        lines.append(f"  {moment(attempt.time)}  {status:>4}  {attempt.reason.lower():<18} {took}")
    return "\n".join(lines)
