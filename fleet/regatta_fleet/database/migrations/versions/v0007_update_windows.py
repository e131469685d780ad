"""Update windows of groups, rollouts that wait for none, and devices of a wave that wait for theirs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and add the columns: what was rolled out before waits, where a window is set."""
    op.create_table(
        "update_windows",
        sa.Column("group_name", sa.String(length=64), nullable=False),
        sa.Column("windows", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("group_name", name=op.f("pk_update_windows")),
    )
    for table in ("rollouts", "assignments"):
        op.add_column(table, sa.Column("ignore_window", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("rollout_devices", sa.Column("opens_at", sa.Float()))
    op.add_column("rollout_devices", sa.Column("waits", sa.Boolean(), nullable=False, server_default=sa.false()))
