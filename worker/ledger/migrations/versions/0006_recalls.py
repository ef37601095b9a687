"""Recalls: which models were withdrawn, and which results with them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.roles import apply_roles

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table and the column, and give the roles their rights."""
    op.create_table(
        "recalled_models",
        sa.Column("model_sha256", sa.Text(), nullable=False),
        sa.Column("recalled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model_sha256", name="pk_recalled_models"),
    )
    op.add_column("results", sa.Column("recalled_at", sa.DateTime(timezone=True), nullable=True))
    apply_roles(op.get_bind())
