"""What people may do about what was set aside: have it tried again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import CompoundSelect, Select, and_, bindparam, exists, select, union, update

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
_NOT_DELIVERED = (DeliveryState.FAILED, DeliveryState.PARKED)
_CHUNK = 100
"""Studies in one transaction: with thousands, leases would run out while their workers wait to write."""


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


@dataclass(frozen=True, kw_only=True)
class QuarantinedStudy:
    """A study whose newest job is quarantined and none of whose images is: they were decided before."""

    study_instance_uid: str
    reason: Reason | None
    sentence: str | None


class Retry(Store):
    """Second chances."""

    def retry(self, study_instance_uid: str | None = None) -> int:
        """Make quarantined work and failed or parked deliveries due again; return how many.

        Of one study, or of all, in the lane that each had. A quarantined job is reopened, its attempts
        counted anew. A study that ended with quarantined images, whatever set them aside then, gets a new
        generation that reads all its images again.

        Of all it is many transactions: when one fails, what those before it did stands.

        Raises:
            Retryable: the database is away or busy.
        """
        found = self._studies(_set_aside()) if study_instance_uid is None else [study_instance_uid]
        count = 0
        for studies in _chunks(found):
            with self._writing() as writer:
                count += len(_reopen_jobs(writer, studies)) + len(_reopen_studies(writer, studies))
                count += _reopen_deliveries(writer, studies)
        return count

    def release_quarantine(
        self, *, study_instance_uid: str | None = None, reason: Reason | None = None
    ) -> list[str]:
        """Have quarantined images and studies read again; return the studies.

        Of one study or of all, of one reason or of any. Deliveries are left as they are. As with `retry`,
        it may be many transactions.

        Raises:
            Retryable: the database is away or busy.
        """
        images = select(Image.study_instance_uid).where(_SET_ASIDE, Image.purged_at.is_(None))
        # A job that was begun again may be held while all its images stand decided from before.
        jobs = select(Job.study_instance_uid).where(Job.state == JobState.QUARANTINED)
        if study_instance_uid is not None:
            images = images.where(Image.study_instance_uid == study_instance_uid)
            jobs = jobs.where(Job.study_instance_uid == study_instance_uid)
        if reason is not None:
            images, jobs = images.where(Image.reason == reason), jobs.where(Job.reason == reason)
        released: list[str] = []
        for studies in _chunks(self._studies(union(images, jobs))):
            with self._writing() as writer:
                reopened = {*_reopen_jobs(writer, studies), *_reopen_studies(writer, studies)}
            released += [uid for uid in studies if uid in reopened]
        return released

    def _studies(self, chosen: Select[str] | CompoundSelect[str]) -> list[str]:
        with self._reading() as connection:
            return sorted(connection.execute(chosen).scalars())

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

    def quarantined_studies(self) -> list[QuarantinedStudy]:
        """Every study that is held without an image that is; those that were held first at the front."""
        mine = (Image.study_instance_uid == Job.study_instance_uid, Image.purged_at.is_(None))
        none = ~exists().where(*mine, Image.disposition == Disposition.QUARANTINED)
        held = select(Job.study_instance_uid, Job.reason, Job.sentence)
        held = held.where(Job.state == JobState.QUARANTINED, none).order_by(Job.finished_at, Job.id)
        with self._reading() as connection:
            return [QuarantinedStudy(**row._mapping) for row in connection.execute(held)]


def _chunks(studies: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(studies), _CHUNK):
        yield studies[start : start + _CHUNK]


def _set_aside() -> CompoundSelect[str]:
    """Studies of which something may be retried; whether it is, the writer sees."""
    deliveries = (
        select(Result.study_instance_uid)
        .join(Output, Output.result_id == Result.id)
        .join(Delivery, Delivery.output_id == Output.id)
        .where(Delivery.state.in_(_NOT_DELIVERED))
    )
    return union(
        select(Job.study_instance_uid).where(Job.state == JobState.QUARANTINED),
        select(Image.study_instance_uid).where(_SET_ASIDE, Image.purged_at.is_(None)),
        deliveries,
    )


def _reopen_jobs(writer: Transaction, among: Sequence[str]) -> list[str]:
    """The studies whose jobs are ready again."""
    fresh: dict[str, Any] = {"state": JobState.READY, "attempt": 0, "releases": 0, "not_before": writer.now}
    fresh |= {"reason": None, "sentence": None, "finished_at": None}
    reopened = update(Job).where(Job.study_instance_uid.in_(among), Job.state == JobState.QUARANTINED)
    jobs = writer.execute(reopened.values(fresh).returning(Job.study_instance_uid, Job.generation)).all()
    for job in jobs:
        writer.note(Kind.RETRIED, job.study_instance_uid, generation=job.generation)
    return _reopen_images(writer, [job.study_instance_uid for job in jobs])


def _reopen_studies(writer: Transaction, among: Sequence[str]) -> list[str]:
    """The studies that have a new generation."""
    newest = and_(Job.study_instance_uid == Study.study_instance_uid, Job.generation == Study.generation)
    kept = Image.purged_at.is_(None)
    quarantined = exists().where(Image.study_instance_uid == Study.study_instance_uid, _SET_ASIDE, kept)
    studies = writer.execute(
        select(Study.study_instance_uid, Study.generation, Job.lane)
        .join(Job, newest)
        .where(Study.study_instance_uid.in_(among), Job.state == JobState.DONE, quarantined)
    ).all()
    for study in studies:
        generation = study.generation + 1
        open_job(writer, study.study_instance_uid, generation, study.lane)
        writer.note(Kind.RETRIED, study.study_instance_uid, generation=generation)
    return _reopen_images(writer, [study.study_instance_uid for study in studies])


def _reopen_images(writer: Transaction, studies: list[str]) -> list[str]:
    pending = update(Image).where(Image.study_instance_uid.in_(studies), _SET_ASIDE)
    if studies:
        writer.execute(pending.values(disposition=Disposition.PENDING, reason=None, sentence=None))
    return studies


def _reopen_deliveries(writer: Transaction, among: Sequence[str]) -> int:
    rows = writer.execute(
        select(Delivery.id, Delivery.destination, Output.sop_instance_uid, Result.study_instance_uid)
        .join_from(Delivery, Output, Delivery.output_id == Output.id)
        .join(Result, Output.result_id == Result.id)
        .where(Delivery.state.in_(_NOT_DELIVERED), Result.study_instance_uid.in_(among))
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
