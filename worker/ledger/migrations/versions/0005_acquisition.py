"""Drift: which apparatus and view an image is of, and results by model and time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
compatible_since = "0001"

CODE = sa.String(32)


def upgrade() -> None:
    """Add what older images do not tell."""
    op.add_column("images", sa.Column("manufacturer", CODE, nullable=True))
    op.add_column("images", sa.Column("view", CODE, nullable=True))
    op.create_index("ix_results_configuration_recorded_at", "results", ["configuration", "recorded_at"])
