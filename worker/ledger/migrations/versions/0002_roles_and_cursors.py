"""Roles that cannot change the audit trail (PostgreSQL), and how far its readers have come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.roles import apply_roles

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
compatible_since = "0001"


def upgrade() -> None:
    """Make the table of cursors, and the roles with their rights on all tables."""
    op.create_table(
        "cursors",
        sa.Column("reader", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("reader", name="pk_cursors"),
    )
    apply_roles(op.get_bind())
