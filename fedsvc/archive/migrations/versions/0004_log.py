"""Events, and outcomes in the order in which they came: the log outlives what Redis keeps of it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("partition", sa.SmallInteger, nullable=False, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("type", sa.SmallInteger, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("partition", "number", name="pk_events"),
    )
    op.create_index("ix_events_number", "events", ["number"])
    op.create_index("ix_deliveries_partition_outcome", "deliveries", ["partition", "outcome"])


def downgrade() -> None:
    op.drop_index("ix_deliveries_partition_outcome", "deliveries")
    op.drop_table("events")
