"""Windows of refusals that stand in the audit trail, so that none is taken twice."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.roles import apply_roles

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
compatible_since = "0001"


def upgrade() -> None:
    """Make the table, and give the roles their rights on it."""
    op.create_table(
        "taken_windows",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_taken_windows"),
    )
    apply_roles(op.get_bind())
