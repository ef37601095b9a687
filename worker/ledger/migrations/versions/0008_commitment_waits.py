"""An index by which an open request is found however many older ones were never answered."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
compatible_since = "0001"


def upgrade() -> None:
    """Add the wider index, which serves what the narrow one served."""
    op.create_index("ix_commitments_delivery_id_deadline", "commitments", ["delivery_id", "deadline"])
    op.drop_index("ix_commitments_delivery_id", "commitments")
