"""The lane of a job. Empty is routine, and what a worker of the version before writes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
compatible_since = "0001"


def upgrade() -> None:
    """Add the column."""
    op.add_column("jobs", sa.Column("lane", sa.String(32), nullable=True))
