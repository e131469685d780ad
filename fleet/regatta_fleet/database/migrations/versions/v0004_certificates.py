"""Certificates of devices in a table of their own: a device has several once it renews."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_YEAR_S = 365 * 86_400  # certificates were given for a year before there was renewal


def upgrade() -> None:
    """Create the table and move what is known into it."""
    op.create_table(
        "certificates",
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"], name=op.f("fk_certificates_device_devices")),
        sa.PrimaryKeyConstraint("device", "serial", name=op.f("pk_certificates")),
    )
    op.execute(
        "INSERT INTO certificates (device, serial, expires_at) "  # noqa: S608 - a number of our own
        f"SELECT id, certificate_serial, enrolled_at + {_YEAR_S} FROM devices WHERE revoked_at IS NULL"
    )
    op.execute("ALTER TABLE devices DROP COLUMN certificate_serial")
