"""Deliveries that ended."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deliveries",
        sa.Column("partition", sa.SmallInteger, nullable=False, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("outcome", sa.BigInteger, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("reason", sa.SmallInteger, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("attempts", sa.SmallInteger, nullable=False),
        sa.Column("activity_key", sa.LargeBinary(16), nullable=False),
        sa.Column("activity_id", sa.Text, nullable=False),
        sa.Column("activity_type", sa.String(64), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("inbox", sa.Text, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("origin", sa.String(255), nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("snippet", sa.Text, nullable=False),
        sa.Column("expire_ms", sa.BigInteger, nullable=False),
        sa.Column("completed_ms", sa.BigInteger, nullable=False),
        sa.Column("ordering_key", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("history", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("partition", "sequence", name="pk_deliveries"),
    )
    op.create_index(
        "ix_deliveries_activity_key_partition_sequence",
        "deliveries",
        ["activity_key", "partition", "sequence"],
    )
    op.create_index("ix_deliveries_completed_ms", "deliveries", ["completed_ms"])
    op.create_index("ix_deliveries_host_completed_ms", "deliveries", ["host", "completed_ms"])


def downgrade() -> None:
    op.drop_table("deliveries")
