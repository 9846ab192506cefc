"""The archive's tables. Numbers of states, reasons and priorities are those of `domain.delivery`.

`migrations/` makes them; a test holds both against each other.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: one row for each delivery that ended; a dead letter that is replayed gets its row changed
deliveries = Table(
    "deliveries",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("outcome", BigInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("reason", SmallInteger, nullable=False),
    Column("status", Integer, nullable=False),
    Column("attempts", SmallInteger, nullable=False),
    # stands for activity_id in the index: ids may be long
    Column("activity_key", LargeBinary(16), nullable=False),
    Column("activity_id", Text, nullable=False),
    Column("activity_type", String(64), nullable=False),
    Column("actor", Text, nullable=False),
    Column("inbox", Text, nullable=False),
    Column("host", String(255), nullable=False),
    Column("origin", String(255), nullable=False),
    Column("key_id", Text, nullable=False),
    Column("snippet", Text, nullable=False),
    Column("expire_ms", BigInteger, nullable=False),
    Column("completed_ms", BigInteger, nullable=False),
    Column("ordering_key", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("history", JSON, nullable=False),
    Index(None, "activity_key", "partition", "sequence"),
    Index(None, "state", "completed_ms"),
    Index(None, "host", "completed_ms"),
    Index(None, "partition", "outcome"),
)

#: what happened to hosts, inboxes and keys
events = Table(
    "events",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("type", SmallInteger, nullable=False),
    Column("host", String(255), nullable=False),
    Column("detail", Text, nullable=False),
    Index(None, "number"),
)

#: who changed what
audit_events = Table(
    "audit_events",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("time_ms", BigInteger, nullable=False),
    Column("principal", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("details", JSON, nullable=False),
    Index(None, "time_ms", "id"),
)

#: one row for each batch of parked deliveries that left Redis
spilled_batches = Table(
    "spilled_batches",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("batch", BigInteger, primary_key=True, autoincrement=False),
    Column("host", Text, nullable=False),
)

#: what is in a batch; a delivery is in two only while it moves from one to the other
spilled_deliveries = Table(
    "spilled_deliveries",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("batch", BigInteger, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("message", BigInteger, nullable=False),
    Column("deadline_s", BigInteger, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Index(None, "partition", "sequence"),
)

#: activities of deliveries in any batch, each once
spilled_messages = Table(
    "spilled_messages",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
    Column("fields", LargeBinary, nullable=False),
    Column("identity", LargeBinary, nullable=False),
)

#: which batch needs which message
spilled_needs = Table(
    "spilled_needs",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("batch", BigInteger, primary_key=True, autoincrement=False),
    Index(None, "partition", "batch"),
)
