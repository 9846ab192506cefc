"""Parked deliveries of hosts that are down for long, in batches."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "spilled_batches",
        sa.Column("partition", sa.SmallInteger, nullable=False, autoincrement=False),
        sa.Column("batch", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("partition", "batch", name="pk_spilled_batches"),
    )
    op.create_table(
        "spilled_deliveries",
        sa.Column("partition", sa.SmallInteger, nullable=False, autoincrement=False),
        sa.Column("batch", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("message", sa.BigInteger, nullable=False),
        sa.Column("deadline_s", sa.BigInteger, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("partition", "batch", "sequence", name="pk_spilled_deliveries"),
    )
    op.create_index(
        "ix_spilled_deliveries_partition_sequence", "spilled_deliveries", ["partition", "sequence"]
    )
    op.create_table(
        "spilled_messages",
        sa.Column("partition", sa.SmallInteger, nullable=False, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("fields", sa.LargeBinary, nullable=False),
        sa.Column("identity", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("partition", "number", name="pk_spilled_messages"),
    )
    op.create_table(
        "spilled_needs",
        sa.Column("partition", sa.SmallInteger, nullable=False, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("batch", sa.BigInteger, nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("partition", "number", "batch", name="pk_spilled_needs"),
    )
    op.create_index("ix_spilled_needs_partition_batch", "spilled_needs", ["partition", "batch"])


def downgrade() -> None:
    for table in ("spilled_needs", "spilled_messages", "spilled_deliveries", "spilled_batches"):
        op.drop_table(table)
