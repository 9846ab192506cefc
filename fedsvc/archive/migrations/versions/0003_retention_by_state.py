"""What is due to be purged is found by state: each state has its own retention."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_deliveries_state_completed_ms", "deliveries", ["state", "completed_ms"])
    op.drop_index("ix_deliveries_completed_ms", "deliveries")


def downgrade() -> None:
    op.create_index("ix_deliveries_completed_ms", "deliveries", ["completed_ms"])
    op.drop_index("ix_deliveries_state_completed_ms", "deliveries")
