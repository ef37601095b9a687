"""The first schema: studies, images, jobs, results, outputs, deliveries, commitments, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
compatible_since = "0001"

TEXT = sa.Text()
CODE = sa.String(32)
TIME = sa.DateTime(timezone=True)

_SQLITE_TRIGGERS = (
    """CREATE TRIGGER events_refuse_update BEFORE UPDATE ON events
       BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
    """CREATE TRIGGER events_refuse_delete BEFORE DELETE ON events
       BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
    # INSERT OR REPLACE deletes without asking the trigger above.
    """CREATE TRIGGER events_refuse_replace BEFORE INSERT ON events
       WHEN EXISTS (SELECT 1 FROM events WHERE seq = NEW.seq)
       BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
)
_POSTGRESQL_TRIGGERS = (
    """CREATE FUNCTION events_refuse() RETURNS trigger LANGUAGE plpgsql AS
       $$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$""",
    """CREATE TRIGGER events_refuse_change BEFORE UPDATE OR DELETE ON events
       FOR EACH ROW EXECUTE FUNCTION events_refuse()""",
    """CREATE TRIGGER events_refuse_truncate BEFORE TRUNCATE ON events
       FOR EACH STATEMENT EXECUTE FUNCTION events_refuse()""",
)


def upgrade() -> None:
    """Make every table, and the triggers that keep the audit trail append-only."""
    _studies()
    _images()
    _jobs()
    _results()
    _outputs()
    _deliveries()
    _commitments()
    _events()
    triggers = _SQLITE_TRIGGERS if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL_TRIGGERS
    for trigger in triggers:
        op.execute(trigger)


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("study_instance_uid", TEXT, nullable=True),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("previous", TEXT, nullable=False),
        sa.Column("hash", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
    )
    op.create_index("ix_events_study_instance_uid", "events", ["study_instance_uid"])


def _studies() -> None:
    op.create_table(
        "studies",
        sa.Column("study_instance_uid", TEXT, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("registered_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("study_instance_uid", name="pk_studies"),
    )
    op.create_index("ix_studies_registered_at", "studies", ["registered_at"])


def _images() -> None:
    op.create_table(
        "images",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("study_instance_uid", TEXT, nullable=False),
        sa.Column("series_instance_uid", TEXT, nullable=False),
        sa.Column("sop_instance_uid", TEXT, nullable=False),
        sa.Column("sop_class_uid", TEXT, nullable=False),
        sa.Column("transfer_syntax_uid", TEXT, nullable=False),
        sa.Column("sha256", TEXT, nullable=False),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("calling_ae", TEXT, nullable=False),
        sa.Column("called_ae", TEXT, nullable=False),
        sa.Column("address", TEXT, nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("registered_at", TIME, nullable=False),
        sa.Column("generation", sa.Integer, nullable=True),
        sa.Column("disposition", CODE, nullable=False),
        sa.Column("reason", CODE, nullable=True),
        sa.Column("sentence", TEXT, nullable=True),
        sa.Column("logit", sa.Double(), nullable=True),
        sa.Column("probability", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"], ["studies.study_instance_uid"], name="fk_images_study_instance_uid"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
        sa.UniqueConstraint(
            "study_instance_uid",
            "sop_instance_uid",
            "sha256",
            name="uq_images_study_instance_uid_sop_instance_uid_sha256",
        ),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("study_instance_uid", TEXT, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("state", CODE, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("releases", sa.Integer, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("not_before", TIME, nullable=False),
        sa.Column("worker", TEXT, nullable=True),
        sa.Column("lease_until", TIME, nullable=True),
        sa.Column("reason", CODE, nullable=True),
        sa.Column("sentence", TEXT, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("claimed_at", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"], ["studies.study_instance_uid"], name="fk_jobs_study_instance_uid"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("study_instance_uid", "generation", name="uq_jobs_study_instance_uid_generation"),
    )
    op.create_index("ix_jobs_state_not_before", "jobs", ["state", "not_before"])


def _results() -> None:
    op.create_table(
        "results",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("study_instance_uid", TEXT, nullable=False),
        sa.Column("job_id", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("input_set_hash", TEXT, nullable=False),
        sa.Column("model_name", TEXT, nullable=False),
        sa.Column("model_version", TEXT, nullable=False),
        sa.Column("model_sha256", TEXT, nullable=False),
        sa.Column("configuration", TEXT, nullable=False),
        sa.Column("engine", TEXT, nullable=False),
        sa.Column("precision", TEXT, nullable=False),
        sa.Column("recipe", TEXT, nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("operating_point", TEXT, nullable=False),
        sa.Column("decision", TEXT, nullable=True),
        sa.Column("logit", sa.Double(), nullable=True),
        sa.Column("probability", sa.Double(), nullable=True),
        sa.Column("analysed_at", TIME, nullable=False),
        sa.Column("recorded_at", TIME, nullable=False),
        sa.Column("superseded_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_results_job_id"),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"], ["studies.study_instance_uid"], name="fk_results_study_instance_uid"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_results"),
        sa.UniqueConstraint(
            "study_instance_uid",
            "configuration",
            "input_set_hash",
            "generation",
            name="uq_results_study_configuration_input_set_generation",
        ),
    )


def _outputs() -> None:
    op.create_table(
        "outputs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("result_id", sa.Integer, nullable=False),
        sa.Column("role", CODE, nullable=False),
        sa.Column("sop_class_uid", TEXT, nullable=False),
        sa.Column("sop_instance_uid", TEXT, nullable=False),
        sa.Column("series_instance_uid", TEXT, nullable=False),
        sa.Column("sha256", TEXT, nullable=False),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("dropped_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_outputs_result_id"),
        sa.PrimaryKeyConstraint("id", name="pk_outputs"),
        sa.UniqueConstraint("sop_instance_uid", name="uq_outputs_sop_instance_uid"),
    )
    op.create_index("ix_outputs_dropped_at", "outputs", ["dropped_at"])
    op.create_index("ix_outputs_result_id", "outputs", ["result_id"])


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("output_id", sa.Integer, nullable=False),
        sa.Column("destination", TEXT, nullable=False),
        sa.Column("state", CODE, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("refusals", sa.Integer, nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("last_status", sa.Integer, nullable=True),
        sa.Column("sentence", TEXT, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("stored_at", TIME, nullable=True),
        sa.Column("proven_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["output_id"], ["outputs.id"], name="fk_deliveries_output_id"),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.UniqueConstraint("output_id", "destination", name="uq_deliveries_output_id_destination"),
    )
    op.create_index(
        "ix_deliveries_destination_state_due_at", "deliveries", ["destination", "state", "due_at"]
    )


def _commitments() -> None:
    op.create_table(
        "commitments",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("transaction_uid", TEXT, nullable=False),
        sa.Column("delivery_id", sa.Integer, nullable=False),
        sa.Column("requested_at", TIME, nullable=False),
        sa.Column("deadline", TIME, nullable=False),
        sa.Column("status", sa.Integer, nullable=True),
        sa.Column("reported_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], name="fk_commitments_delivery_id"),
        sa.PrimaryKeyConstraint("id", name="pk_commitments"),
        sa.UniqueConstraint(
            "transaction_uid", "delivery_id", name="uq_commitments_transaction_uid_delivery_id"
        ),
    )
    op.create_index("ix_commitments_delivery_id", "commitments", ["delivery_id"])
