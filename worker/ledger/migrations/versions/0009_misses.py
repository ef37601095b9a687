"""How often in all a destination stored an object and did not show it: the trail tells of the first ones."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None
compatible_since = "0001"


def upgrade() -> None:
    """Add a column that older programs leave empty."""
    op.add_column("deliveries", sa.Column("misses", sa.Integer, nullable=True))
