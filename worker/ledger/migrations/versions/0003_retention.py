"""Retention: when a received file was purged, and which studies name more than one patient."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
compatible_since = "0001"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the columns, and indexes that hold only what is still to be done."""
    op.add_column("studies", sa.Column("conflict_at", TIME, nullable=True))
    op.add_column("images", sa.Column("purged_at", TIME, nullable=True))
    op.add_column("images", sa.Column("removed_at", TIME, nullable=True))
    _partial_index("ix_images_kept", ["received_at"], "purged_at IS NULL")
    _partial_index("ix_images_leaving", ["purged_at"], "purged_at IS NOT NULL AND removed_at IS NULL")


def _partial_index(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "images", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
