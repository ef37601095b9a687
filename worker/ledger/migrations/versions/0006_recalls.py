"""Recalls: which models were withdrawn, and which results with them; and the scores of a shadow."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.roles import apply_roles

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
compatible_since = "0001"


def upgrade() -> None:
    """Make the tables and the column, and give the roles their rights."""
    op.create_table(
        "recalled_models",
        sa.Column("model_sha256", sa.Text(), nullable=False),
        sa.Column("recalled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model_sha256", name="pk_recalled_models"),
    )
    op.add_column("results", sa.Column("recalled_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "shadow_scores",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("model_sha256", sa.Text(), nullable=False),
        sa.Column("positive", sa.Boolean(), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("shadow_sha256", sa.Text(), nullable=False),
        sa.Column("shadow_positive", sa.Boolean(), nullable=False),
        sa.Column("shadow_probability", sa.Double(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_shadow_scores"),
        sa.UniqueConstraint(
            "study_instance_uid",
            "generation",
            "sop_instance_uid",
            "shadow_sha256",
            name="uq_shadow_scores_film",
        ),
    )
    apply_roles(op.get_bind())
