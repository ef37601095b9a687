"""Claims: one worker at a time has a job, for as long as its lease runs and nobody has a higher fence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from importlib.metadata import version
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, bindparam, func, or_, select, update

from dicom_node.errors import Reason
from dicom_node.lanes import Lane
from dicom_node.spool import SpooledInstance
from worker.findings import ModelIdentity, Reading, StudyFinding
from worker.ledger.audit import Kind
from worker.ledger.models import Disposition, Image, Job, JobState, Study
from worker.ledger.store import SET_BACK, Store, Transaction


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to score one generation of one study, until someone holds a higher fence."""

    job_id: int
    study_instance_uid: str
    generation: int
    attempt: int
    releases: int
    fence: int
    lane: Lane
    instances: tuple[SpooledInstance, ...]
    """Every image that the study's result is to rest on, oldest first; one a SOP instance."""
    purged: int = 0
    """How many of them were purged: their files are gone, and a part of a study is no study."""


class Recorded(StrEnum):
    """What became of a worker's writing."""

    RECORDED = "recorded"
    STALE = "stale"
    """The lease lapsed and the job went on without this worker: nothing was written."""
    SUPERSEDED = "superseded"
    """A newer generation took the job's place: nothing was written."""
    UNCHANGED = "unchanged"
    """The result in force is of the same model and the same images: that one stands."""


class Jobs(Store):
    """Gives jobs to workers and takes them back."""

    def claim(
        self, study_instance_uid: str, *, worker: str, lease: timedelta, maximum_attempts: int
    ) -> Claim | None:
        """Take the study's job if it is ready or its lease has lapsed; None when there is none to take.

        A job whose claims ended in silence `maximum_attempts` times is quarantined instead: whatever
        kills its workers would go on for ever. Claims that were released do not count.

        Raises:
            Retryable: the database is away or busy.
        """
        with self._writing() as writer:
            now = writer.now
            claimable = and_(Job.study_instance_uid == study_instance_uid, _claimable(now))
            row = writer.execute(
                update(Job)
                .where(claimable, Job.attempt < maximum_attempts)
                .values(
                    state=JobState.CLAIMED,
                    attempt=Job.attempt + 1,
                    fence=Job.fence + 1,
                    worker=worker,
                    claimed_at=now,
                    lease_until=now + lease,
                )
                .returning(Job.id, Job.generation, Job.attempt, Job.releases, Job.fence, Job.lane)
            ).one_or_none()
            if row is None:
                _give_up(writer, claimable)
                return None
            facts = row._asdict()
            lane = facts.pop("lane") or Lane.ROUTINE
            writer.note(Kind.CLAIMED, study_instance_uid, worker=worker, lease_until=now + lease, **facts)
            return Claim(
                job_id=facts.pop("id"),
                study_instance_uid=study_instance_uid,
                lane=lane,
                instances=instances_of(writer, study_instance_uid),
                purged=writer.execute(purged_of(study_instance_uid)).scalar_one(),
                **facts,
            )

    def extend(self, claim: Claim, *, lease: timedelta) -> bool:
        """Let the lease run anew from now; False when the claim is lost."""
        with self._writing() as writer:
            held = and_(Job.id == claim.job_id, Job.fence == claim.fence, Job.state == JobState.CLAIMED)
            extended = update(Job).where(held).values(lease_until=writer.now + lease)
            return writer.execute(extended.returning(Job.id)).one_or_none() is not None

    def release(self, claim: Claim, *, retry_in: timedelta, sentence: str) -> Recorded:
        """Give the job back to be claimed later: something it needs is away. Its attempt is not counted."""
        with self._writing() as writer:
            job = held_job(writer, claim)
            if isinstance(job, Recorded):
                return job
            not_before = writer.now + retry_in
            change = {"state": JobState.READY, "not_before": not_before, "sentence": sentence}
            change |= {"attempt": job.attempt - 1, "releases": job.releases + 1, "lease_until": None}
            writer.execute(update(Job).where(Job.id == claim.job_id).values(**change))
            told = facts_of(claim) | {"not_before": not_before, "sentence": sentence}
            writer.note(Kind.RELEASED, claim.study_instance_uid, **told)
            return Recorded.RECORDED

    def quarantine(
        self, claim: Claim, reason: Reason, sentence: str, *, model: ModelIdentity | None = None
    ) -> Recorded:
        """End the job without a result: it would fail again. Its undecided images share the reason.

        Args:
            claim: what ends.
            reason: why.
            sentence: why, for people.
            model: which one the study was to be scored with, for the audit.
        """
        with self._writing() as writer:
            job = held_job(writer, claim)
            if isinstance(job, Recorded):
                return job
            told = tell_algorithm(model) if model else {}
            _quarantine(writer, job, reason, sentence, **told)
            if reason is Reason.IDENTITY_CONFLICT:
                # An earlier result may still be on its way, and its patient may be the wrong one.
                _mark_conflict(writer, claim.study_instance_uid, writer.now)
            return Recorded.RECORDED

    def announceable(self, *, waited: timedelta = timedelta(), limit: int = 1000) -> dict[str, Lane]:
        """Studies whose job may be claimed, and might have been for `waited`, each with its lane.

        Those that wait longest come first, `limit` of each lane: no backlog hides what is urgent.
        """
        found: dict[str, Lane] = {}
        with self._reading() as connection:
            claimable = _claimable(self._now(connection) - waited)
            for lane in Lane:
                # Empty is routine, see migration 0007.
                mine = func.coalesce(Job.lane, Lane.ROUTINE) == lane
                waiting = select(Job.study_instance_uid).where(claimable, mine)
                studies = connection.execute(waiting.order_by(Job.not_before, Job.id).limit(limit)).scalars()
                found |= dict.fromkeys(studies, lane)
        return found


def held_job(writer: Transaction, claim: Claim) -> Row[Any] | Recorded:
    """The claim's job row if the claim still holds; else why it does not."""
    job = writer.execute(select(Job.__table__).where(Job.id == claim.job_id)).one()
    if job.fence != claim.fence:
        return Recorded.STALE
    if job.state is JobState.CLAIMED:
        return job
    ended = {JobState.SUPERSEDED: Recorded.SUPERSEDED, JobState.DONE: Recorded.UNCHANGED}
    return ended.get(job.state, Recorded.STALE)


def facts_of(claim: Claim) -> dict[str, Any]:
    """What every event of a job tells of its claim."""
    return {
        "id": claim.job_id,
        "generation": claim.generation,
        "attempt": claim.attempt,
        "fence": claim.fence,
    }


def times_of(job: Row[Any]) -> dict[str, Any]:
    """What the event at the end of a job tells of its way there."""
    return {"worker": job.worker, "queued_at": job.created_at, "started_at": job.claimed_at}


def tell_algorithm(model: ModelIdentity) -> dict[str, Any]:
    """What an event tells of who scored: model, device and our own version."""
    return {"model": asdict(model), "device_uid": model.device_uid, "software": version("covariance")}


def finish_job(writer: Transaction, claim: Claim) -> None:
    """Mark the job done."""
    done = {"state": JobState.DONE, "finished_at": writer.now, "lease_until": None, "sentence": None}
    writer.execute(update(Job).where(Job.id == claim.job_id).values(**done))
    _mark_conflict(writer, claim.study_instance_uid, None)


def _mark_conflict(writer: Transaction, study_instance_uid: str, at: datetime | None) -> None:
    mine = Study.study_instance_uid == study_instance_uid
    writer.execute(update(Study).where(mine).values(conflict_at=at))


def dispose(writer: Transaction, claim: Claim, finding: StudyFinding, *, only_pending: bool = False) -> None:
    """Give every image of the claim, or every pending one, the disposition that the finding holds for it.

    Raises:
        ValueError: the finding leaves an image out, or holds one that was not claimed.
    """
    ends = list(_ends(finding))
    if sorted(end["sop"] for end in ends) != sorted(one.sop_instance_uid for one in claim.instances):
        raise ValueError("a finding decides on every claimed image, once")
    if not ends:
        return
    mine = [Image.study_instance_uid == claim.study_instance_uid, Image.generation.is_not(None)]
    if only_pending:
        mine.append(Image.disposition == Disposition.PENDING)
    columns = ("disposition", "reason", "sentence", "logit", "probability", "manufacturer", "view")
    change = update(Image).where(*mine, Image.sop_instance_uid == bindparam("sop"))
    writer.execute(change.values({name: bindparam(f"new_{name}") for name in columns}), ends)


def _ends(finding: StudyFinding) -> Iterable[dict[str, Any]]:
    for score in finding.scores:
        sop, scored = score.reading.sop_instance_uid, (score.logit, score.probability)
        yield _end(sop, Disposition.SCORED, score=scored, reading=score.reading)
    for reading in finding.set_aside:
        sop, reason = reading.sop_instance_uid, reading.eligibility.reason
        yield _end(sop, Disposition.BY_POLICY, reason, reading=reading)
    for rejected in finding.quarantined:
        sop = rejected.sop_instance_uid
        yield _end(sop, Disposition.QUARANTINED, rejected.reason, rejected.sentence)


def _end(
    sop: str,
    disposition: Disposition,
    reason: Reason | None = None,
    sentence: str | None = None,
    *,
    score: tuple[float | None, float | None] = (None, None),
    reading: Reading | None = None,
) -> dict[str, Any]:
    return {
        "sop": sop,
        "new_disposition": disposition,
        "new_reason": reason,
        "new_sentence": sentence,
        "new_logit": score[0],
        "new_probability": score[1],
        "new_manufacturer": reading.manufacturer if reading else None,
        "new_view": reading.view if reading else None,
    }


def _quarantine(writer: Transaction, job: Row[Any], reason: Reason, sentence: str, **told: Any) -> None:
    """Quarantine a job and what it leaves undecided."""
    why = {"reason": reason, "sentence": sentence}
    ended = {"state": JobState.QUARANTINED, "finished_at": writer.now, "lease_until": None}
    writer.execute(update(Job).where(Job.id == job.id).values(**ended, **why))
    mine = (Image.study_instance_uid == job.study_instance_uid, Image.disposition == Disposition.PENDING)
    public = (Image.sop_instance_uid, Image.sha256, Image.calling_ae, Image.received_at, Image.reason)
    undecided = update(Image).where(*mine).values(disposition=Disposition.QUARANTINED, **why)
    images = [row._asdict() for row in writer.execute(undecided.returning(*public))]
    facts = {name: job._mapping[name] for name in ("id", "generation", "attempt", "fence")}
    told |= facts | times_of(job) | why | {"images": images}
    writer.note(Kind.QUARANTINED, job.study_instance_uid, **told)


def _give_up(writer: Transaction, claimable: ColumnElement[bool]) -> None:
    job = writer.execute(select(Job.__table__).where(claimable)).one_or_none()
    if job is not None:
        last = f" The last one said: {job.sentence}" if job.sentence else ""
        sentence = f"{job.attempt} attempts came to no end.{last}"
        _quarantine(writer, job, Reason.TOO_MANY_ATTEMPTS, sentence)


def _claimable(now: datetime) -> ColumnElement[bool]:
    ahead = now + SET_BACK
    return or_(
        and_(Job.state == JobState.READY, or_(Job.not_before <= now, Job.not_before > ahead)),
        and_(Job.state == JobState.CLAIMED, or_(Job.lease_until <= now, Job.claimed_at > ahead)),
    )


def purged_of(study_instance_uid: str) -> Select[int]:
    """How many of them were purged."""
    mine = (Image.study_instance_uid == study_instance_uid, Image.generation.is_not(None))
    return select(func.count()).where(*mine, Image.purged_at.is_not(None))


def instances_of(writer: Transaction, study_instance_uid: str) -> tuple[SpooledInstance, ...]:
    """Every image that a study's result is to rest on, oldest first."""
    mine = (Image.study_instance_uid == study_instance_uid, Image.generation.is_not(None))
    rows = writer.execute(select(Image.__table__).where(*mine).order_by(Image.received_at, Image.id)).all()
    return tuple(
        SpooledInstance(
            study_instance_uid=row.study_instance_uid,
            series_instance_uid=row.series_instance_uid,
            sop_instance_uid=row.sop_instance_uid,
            sop_class_uid=row.sop_class_uid,
            transfer_syntax_uid=row.transfer_syntax_uid,
            sha256=row.sha256,
            path=writer.files.locate(row.path),
            size=row.size,
            calling_ae=row.calling_ae,
            called_ae=row.called_ae,
            address=row.address,
            received_at=row.received_at,
        )
        for row in rows
    )
