"""Where the time of requests goes: a sketch for each of their stages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column: of what was served before, nothing is known."""
    op.add_column("served", sa.Column("stage_counts", sa.Text()))
