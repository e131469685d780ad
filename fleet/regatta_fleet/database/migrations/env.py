"""Alembic's entry: migrates over the connection that engine.py hands in."""

from __future__ import annotations

from alembic import context

from regatta_fleet.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter a column in place
)
context.run_migrations()
