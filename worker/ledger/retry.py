"""What people may do about what was set aside: have it tried again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, exists, select, update

from worker.ledger.audit import Kind
from worker.ledger.intake import open_job
from worker.ledger.models import (
    Delivery,
    DeliveryState,
    Disposition,
    Image,
    Job,
    JobState,
    Output,
    Result,
    Study,
)
from worker.ledger.store import Store, Transaction

_SET_ASIDE = and_(Image.generation.is_not(None), Image.disposition == Disposition.QUARANTINED)
"""Not the second contents of a UID: those were never work."""


class Retry(Store):
    """Second chances."""

    def retry(self, study_instance_uid: str | None = None) -> int:
        """Make quarantined work and failed or parked deliveries due again; return how many.

        Of one study, or of all. A quarantined job is reopened, its attempts counted anew. A study that
        ended with quarantined images, whatever set them aside then, gets a new generation that reads
        all its images again.

        Raises:
            Retryable: the database is away or busy.
        """
        with self._writing() as writer:
            jobs = _reopen_jobs(writer, study_instance_uid) + _reopen_studies(writer, study_instance_uid)
            return jobs + _reopen_deliveries(writer, study_instance_uid)


def _reopen_jobs(writer: Transaction, uid: str | None) -> int:
    fresh: dict[str, Any] = {"state": JobState.READY, "attempt": 0, "releases": 0, "not_before": writer.now}
    fresh |= {"reason": None, "sentence": None, "finished_at": None}
    reopened = update(Job).where(Job.state == JobState.QUARANTINED, *_of(Job.study_instance_uid, uid))
    jobs = writer.execute(reopened.values(fresh).returning(Job.study_instance_uid, Job.generation)).all()
    for job in jobs:
        writer.note(Kind.RETRIED, job.study_instance_uid, generation=job.generation)
    _reopen_images(writer, [job.study_instance_uid for job in jobs])
    return len(jobs)


def _reopen_studies(writer: Transaction, uid: str | None) -> int:
    newest = and_(Job.study_instance_uid == Study.study_instance_uid, Job.generation == Study.generation)
    ended = (Job.state == JobState.DONE, *_of(Study.study_instance_uid, uid))
    kept = Image.purged_at.is_(None)
    quarantined = exists().where(Image.study_instance_uid == Study.study_instance_uid, _SET_ASIDE, kept)
    studies = writer.execute(
        select(Study.study_instance_uid, Study.generation).join(Job, newest).where(*ended, quarantined)
    ).all()
    for study in studies:
        generation = study.generation + 1
        open_job(writer, study.study_instance_uid, generation)
        writer.note(Kind.RETRIED, study.study_instance_uid, generation=generation)
    _reopen_images(writer, [study.study_instance_uid for study in studies])
    return len(studies)


def _reopen_images(writer: Transaction, studies: list[str]) -> None:
    # A row a study, not a list within one statement: databases bound those.
    pending = update(Image).where(Image.study_instance_uid == bindparam("study"), _SET_ASIDE)
    pending = pending.values(disposition=Disposition.PENDING, reason=None, sentence=None)
    if studies:
        writer.execute(pending, [{"study": study} for study in studies])


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
        fresh = {"state": DeliveryState.DUE, "due_at": writer.now, "sentence": None}
        fresh |= {"attempts": 0, "refusals": 0}
        again = update(Delivery).where(Delivery.id == bindparam("delivery")).values(fresh)
        writer.execute(again, [{"delivery": row.id} for row in rows])
    return len(rows)


def _of(column: Any, uid: str | None) -> tuple[ColumnElement[bool], ...]:
    return () if uid is None else (column == uid,)
