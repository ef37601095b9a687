"""What people may do about what was set aside: have it tried again."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, exists, select, update

from dicom_node.errors import Reason
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


@dataclass(frozen=True, kw_only=True)
class QuarantinedImage:
    """An image that was accepted and could not be scored."""

    study_instance_uid: str
    sop_instance_uid: str
    sha256: str
    calling_ae: str
    received_at: datetime
    reason: Reason | None
    sentence: str | None
    work: bool
    """Whether it can be released: the second content of a UID never was work."""


class Retry(Store):
    """Second chances."""

    def retry(self, study_instance_uid: str | None = None) -> int:
        """Make quarantined work and failed or parked deliveries due again; return how many.

        Of one study, or of all, in the lane that each had. A quarantined job is reopened, its attempts
        counted anew. A study that ended with quarantined images, whatever set them aside then, gets a new
        generation that reads all its images again.

        Raises:
            Retryable: the database is away or busy.
        """
        with self._writing() as writer:
            jobs = _reopen_jobs(writer, study_instance_uid) + _reopen_studies(writer, study_instance_uid)
            return jobs + _reopen_deliveries(writer, study_instance_uid)

    def release_quarantine(
        self, *, study_instance_uid: str | None = None, reason: Reason | None = None
    ) -> list[str]:
        """Have quarantined images and studies read again; return the studies.

        Of one study or of all, of one reason or of any. Deliveries are left as they are.

        Raises:
            Retryable: the database is away or busy.
        """
        with self._writing() as writer:
            held = select(Image.study_instance_uid).where(_SET_ASIDE, Image.purged_at.is_(None))
            held = held.where(*_of(Image.study_instance_uid, study_instance_uid))
            if reason is not None:
                held = held.where(Image.reason == reason)
            studies = list(writer.execute(held.distinct().order_by(Image.study_instance_uid)).scalars())
            return [uid for uid in studies if _reopen_jobs(writer, uid) + _reopen_studies(writer, uid)]

    def hasten(self, study_instance_uid: str) -> bool:
        """Put on record that somebody releases the study, and let its job wait for nothing more.

        False when it has none that waits to be claimed.

        Raises:
            Retryable: the database is away or busy.
        """
        with self._writing() as writer:
            ready = and_(Job.study_instance_uid == study_instance_uid, Job.state == JobState.READY)
            due = update(Job).where(ready).values(not_before=writer.now).returning(Job.generation)
            generation = writer.execute(due).scalar_one_or_none()
            if generation is not None:
                writer.note(Kind.HASTENED, study_instance_uid, generation=generation)
            return generation is not None

    def quarantined(self) -> list[QuarantinedImage]:
        """Every quarantined image that is still here, those that came first at the front."""
        columns = [getattr(Image, field.name) for field in fields(QuarantinedImage) if field.name != "work"]
        work = Image.generation.is_not(None).label("work")
        held = (Image.disposition == Disposition.QUARANTINED, Image.purged_at.is_(None))
        found = select(*columns, work).where(*held).order_by(Image.received_at, Image.id)
        with self._reading() as connection:
            return [QuarantinedImage(**row._mapping) for row in connection.execute(found)]


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
        select(Study.study_instance_uid, Study.generation, Job.lane)
        .join(Job, newest)
        .where(*ended, quarantined)
    ).all()
    for study in studies:
        generation = study.generation + 1
        open_job(writer, study.study_instance_uid, generation, study.lane)
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
