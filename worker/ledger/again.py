"""Scoring again: which studies are meant, and a new generation of one of them, claimed as it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import aliased

from dicom_node.lanes import Lane
from worker.ledger.audit import Kind
from worker.ledger.intake import open_job
from worker.ledger.jobs import Claim, instances_of, purged_of
from worker.ledger.models import Image, Job, JobState, Result, Study
from worker.ledger.store import Store

_RESTS = (JobState.DONE, JobState.QUARANTINED)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which studies; what is left open fits every study."""

    studies: tuple[str, ...] = ()
    """StudyInstanceUIDs; empty: all."""
    received_from: datetime | None = None
    """An image of it came at this moment or later."""
    received_before: datetime | None = None
    """Every image of it came before."""
    calling_ae: str | None = None
    """An image of it came from there."""
    model: str | None = None
    """Begin of the SHA-256 of a model that has scored it."""
    recalled: bool = False
    """Only studies that a recall has left without a result."""


@dataclass(frozen=True, kw_only=True)
class SelectedStudy:
    """A study that is meant."""

    study_instance_uid: str
    images: int
    purged: int
    """Images whose files are gone: a study with one cannot be scored again."""
    job: JobState
    """Of its newest generation; only one that rests can be scored again."""
    model_name: str | None
    model_version: str | None
    decision: str | None
    """Of the result in force."""

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be scored again; None where it can."""
        if self.purged:
            return "its films were purged"
        return None if self.job in _RESTS else "it is about to be scored"


class Again(Store):
    """All raise Retryable when the database is away or busy."""

    def select_studies(self, selection: Selection) -> list[SelectedStudy]:
        """The studies that are meant, those that came first at the front."""
        newest = and_(Job.study_instance_uid == Study.study_instance_uid, Job.generation == Study.generation)
        in_force = and_(Result.study_instance_uid == Study.study_instance_uid, Result.superseded_at.is_(None))
        mine = and_(Image.study_instance_uid == Study.study_instance_uid, Image.generation.is_not(None))
        columns = (
            Study.study_instance_uid,
            Job.state.label("job"),
            Result.model_name,
            Result.model_version,
            Result.decision,
        )
        counts = (func.count(Image.id).label("images"), func.count(Image.purged_at).label("purged"))
        found = (
            select(*columns, *counts)
            .select_from(Study)
            .join(Job, newest)
            .join(Image, mine)
            .outerjoin(Result, in_force)
            .where(*_meant(selection))
            .having(*_received(selection))
            .group_by(*columns)
            .order_by(func.min(Image.received_at), Study.study_instance_uid)
        )
        with self._reading() as connection:
            return [SelectedStudy(**row._mapping) for row in connection.execute(found)]

    def claimed_by(self, workers: Sequence[str]) -> int:
        """How many studies these workers have in hand."""
        held = select(func.count()).where(Job.state == JobState.CLAIMED, Job.worker.in_(workers))
        with self._reading() as connection:
            return connection.execute(held).scalar_one()

    def claim_again(self, study_instance_uid: str, *, worker: str, lease: timedelta) -> Claim | None:
        """Make a new generation of a study that rests, and claim it before anybody else can.

        None when the study does not rest, or a file of it is gone. A worker that dies over it leaves a job
        that any other may claim when the lease has lapsed.
        """
        with self._writing() as writer:
            mine = Study.study_instance_uid == study_instance_uid
            newest = and_(
                Job.study_instance_uid == Study.study_instance_uid, Job.generation == Study.generation
            )
            rests = select(Study.generation).join(Job, newest).where(mine, Job.state.in_(_RESTS))
            before = writer.execute(rests).scalar_one_or_none()
            if before is None or writer.execute(purged_of(study_instance_uid)).scalar_one():
                return None
            generation = before + 1
            # A worker that dies over it leaves a job that is not to delay today's studies.
            open_job(writer, study_instance_uid, generation, Lane.BACKFILL)
            this = (Job.study_instance_uid == study_instance_uid, Job.generation == generation)
            until = writer.now + lease
            claimed = {"state": JobState.CLAIMED, "attempt": 1, "fence": 1, "worker": worker}
            claimed |= {"claimed_at": writer.now, "lease_until": until}
            row = writer.execute(
                update(Job)
                .where(*this)
                .values(**claimed)
                .returning(Job.id, Job.generation, Job.attempt, Job.releases, Job.fence)
            ).one()
            writer.note(Kind.RETRIED, study_instance_uid, generation=generation)
            facts = row._asdict()
            writer.note(Kind.CLAIMED, study_instance_uid, worker=worker, lease_until=until, **facts)
            return Claim(
                job_id=facts.pop("id"),
                study_instance_uid=study_instance_uid,
                lane=Lane.BACKFILL,
                instances=instances_of(writer, study_instance_uid),
                **facts,
            )


def _meant(selection: Selection) -> Iterator[ColumnElement[bool]]:
    uid = Study.study_instance_uid
    if selection.studies:
        yield uid.in_(selection.studies)
    if selection.calling_ae:
        yield uid.in_(select(Image.study_instance_uid).where(Image.calling_ae == selection.calling_ae))
    ever = aliased(Result)
    if selection.model:
        of_model = ever.model_sha256.startswith(selection.model, autoescape=True)
        yield uid.in_(select(ever.study_instance_uid).where(of_model))
    if selection.recalled:
        yield uid.in_(select(ever.study_instance_uid).where(ever.recalled_at.is_not(None)))
        yield Result.id.is_(None)


def _received(selection: Selection) -> Iterator[ColumnElement[bool]]:
    last = func.max(Image.received_at)
    if selection.received_from:
        yield last >= selection.received_from
    if selection.received_before:
        yield last < selection.received_before
