"""Whom a rollout was for, in words, so that devices that come later get what they would have got."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of earlier rollouts it is not known, so they count for nobody else."""
    op.add_column("rollouts", sa.Column("targets", sa.Text(), nullable=False, server_default="[]"))
