"""What people may do about what was set aside: have it tried again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update

from worker.ledger.audit import Kind
from worker.ledger.models import (
    Delivery,
    DeliveryState,
    Disposition,
    Image,
    Job,
    JobState,
    Output,
    Result,
)
from worker.ledger.store import Store, Transaction


class Retry(Store):
    """Second chances."""

    def retry(self, study_instance_uid: str | None = None) -> int:
        """Make quarantined jobs and failed or parked deliveries due again; return how many.

        Of one study, or of all. Their attempts are counted anew.

        Raises:
            Retryable: the database is away or busy.
        """
        with self._writing() as writer:
            return _reopen_jobs(writer, study_instance_uid) + _reopen_deliveries(writer, study_instance_uid)


def _reopen_jobs(writer: Transaction, uid: str | None) -> int:
    fresh: dict[str, Any] = {"state": JobState.READY, "attempt": 0, "not_before": writer.now}
    fresh |= {"reason": None, "sentence": None, "finished_at": None}
    reopened = update(Job).where(Job.state == JobState.QUARANTINED, *_of(Job.study_instance_uid, uid))
    jobs = writer.execute(
        reopened.values(fresh).returning(Job.id, Job.study_instance_uid, Job.generation)
    ).all()
    if not jobs:
        return 0
    studies = [job.study_instance_uid for job in jobs]
    writer.execute(
        update(Image)
        .where(
            Image.study_instance_uid.in_(studies),
            Image.generation.is_not(None),
            Image.disposition == Disposition.QUARANTINED,
        )
        .values(disposition=Disposition.PENDING, reason=None, sentence=None)
    )
    for job in jobs:
        writer.note(Kind.RETRIED, job.study_instance_uid, generation=job.generation)
    return len(jobs)


def _reopen_deliveries(writer: Transaction, uid: str | None) -> int:
    set_aside = (DeliveryState.FAILED, DeliveryState.PARKED)
    rows = writer.execute(
        select(Delivery.id, Delivery.destination, Output.sop_instance_uid, Result.study_instance_uid)
        .join_from(Delivery, Output, Delivery.output_id == Output.id)
        .join(Result, Output.result_id == Result.id)
        .where(Delivery.state.in_(set_aside), *_of(Result.study_instance_uid, uid))
    ).all()
    for row in rows:
        writer.note(
            Kind.RETRIED,
            row.study_instance_uid,
            sop_instance_uid=row.sop_instance_uid,
            destination=row.destination,
        )
    if rows:
        fresh = {"state": DeliveryState.DUE, "due_at": writer.now, "attempts": 0, "sentence": None}
        writer.execute(update(Delivery).where(Delivery.id.in_([row.id for row in rows])).values(fresh))
    return len(rows)


def _of(column: Any, uid: str | None) -> tuple[Any, ...]:
    return () if uid is None else (column == uid,)
