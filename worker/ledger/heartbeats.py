"""Heartbeat studies in the ledger: which came through, and which of them still have a film in the spool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from worker.ledger.models import Image, Result
from worker.ledger.store import Store


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A heartbeat study that has a result."""

    study_instance_uid: str
    received_at: datetime
    recorded_at: datetime


class Heartbeats(Store):
    """Raises Retryable when the database is away or busy."""

    def beats(self, studies: Sequence[str]) -> list[Beat]:
        """Those of the studies, up to 1000 of them, that have a result, oldest first."""
        received = func.min(Image.received_at).label("received_at")
        recorded = func.min(Result.recorded_at).label("recorded_at")
        rows = (
            select(Result.study_instance_uid, received, recorded)
            .join_from(Result, Image, Image.study_instance_uid == Result.study_instance_uid)
            .where(Result.study_instance_uid.in_(studies))
            .group_by(Result.study_instance_uid)
            .order_by(received)
        )
        with self._reading() as connection:
            return [Beat(**row._mapping) for row in connection.execute(rows)]

    def kept_from(self, sender: str, *, before: datetime, limit: int) -> dict[str, list[str]]:
        """Studies that this sender sent before a moment and whose films are kept: their SOP instances."""
        kept = (
            select(Image.study_instance_uid, Image.sop_instance_uid)
            .where(Image.purged_at.is_(None), Image.received_at < before, Image.calling_ae == sender)
            .order_by(Image.received_at)
            .limit(limit)
        )
        found: dict[str, list[str]] = {}
        with self._reading() as connection:
            for study, sop_instance in connection.execute(kept):
                found.setdefault(study, []).append(sop_instance)
        return found
