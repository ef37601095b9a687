"""Alembic's entry: runs the revisions within the transaction that `worker.ledger.migrate` hands over."""

from __future__ import annotations

from alembic import context

from worker.ledger.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
