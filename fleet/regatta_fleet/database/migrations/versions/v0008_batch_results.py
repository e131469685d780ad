"""Outputs of batch jobs that are pulled from devices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("batch_jobs", sa.Column("results_state", sa.String(length=64), nullable=True))
    op.add_column("batch_jobs", sa.Column("results", sa.Text(), nullable=True))
