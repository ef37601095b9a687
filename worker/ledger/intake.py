"""What came in: images are registered once, and an image that gives work makes a new generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, insert, select, update

from dicom_node.errors import Reason
from dicom_node.lanes import Lane, most_urgent
from dicom_node.spool import SpooledInstance
from worker.ledger.audit import Kind
from worker.ledger.models import Disposition, Image, Job, JobState, Output, Study
from worker.ledger.store import Store, Transaction

_CHUNK = 1000
"""Values in one IN list; databases bound them."""
_UNFINISHED = (JobState.READY, JobState.CLAIMED, JobState.QUARANTINED)
"""Of which a new generation takes the place."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What `register` found."""

    new: int
    """Images that the ledger did not know."""
    job_ready: bool
    """Whether a job of the study waits to be claimed."""
    generation: int
    """The newest generation; 0 when no image of the study has given work."""
    conflicting: int = 0
    """Of the new images, those that have the UID of another content: quarantined."""


class Intake(Store):
    """Takes over from the spool."""

    def register(self, study_instance_uid: str, instances: Sequence[SpooledInstance]) -> Registration:
        """Record the images that are not known yet; doing it again changes nothing.

        Our own output that came back is set aside, a second content of a known SOP instance is quarantined.
        Any other new image makes a new generation, whose job takes the place of the study's earlier one.
        An image that was purged and came again is kept again; it gives work only to a study that was held
        for want of it.

        Raises:
            Retryable: the database is away or busy.
        """
        with self._reading() as connection:
            # Most calls find nothing new: they need not wait for a writer.
            known = set(connection.execute(_contents(study_instance_uid, Image.removed_at.is_(None))))
            if all((one.sop_instance_uid, one.sha256) in known for one in instances):
                return _answer(connection.execute(_newest_job(study_instance_uid)).one_or_none(), new=0)
        with self._writing() as writer:
            return _register(writer, study_instance_uid, instances)

    def registered(self, study_instance_uid: str) -> int:
        """How many images of the study are registered and not purged, to compare with the spool."""
        mine = (Image.study_instance_uid == study_instance_uid, Image.removed_at.is_(None))
        count = select(func.count()).where(*mine)
        with self._reading() as connection:
            return connection.execute(count).scalar_one()

    def registered_counts(self, among: Sequence[str] | None = None) -> dict[str, int]:
        """`registered` of these studies, or of every study, as far as they have images."""
        kept = select(Image.study_instance_uid, func.count()).where(Image.removed_at.is_(None))
        counts = kept.group_by(Image.study_instance_uid)
        with self._reading() as connection:
            if among is None:
                return dict(connection.execute(counts).all())
            found: dict[str, int] = {}
            for start in range(0, len(among), _CHUNK):
                these = Image.study_instance_uid.in_(among[start : start + _CHUNK])
                found.update(connection.execute(counts.where(these)).all())
            return found


def _contents(study_instance_uid: str, *where: ColumnElement[bool]) -> Select[str, str]:
    mine = Image.study_instance_uid == study_instance_uid
    return select(Image.sop_instance_uid, Image.sha256).where(mine, *where)


def _newest_job(study_instance_uid: str) -> Select[JobState, int]:
    mine = Job.study_instance_uid == study_instance_uid
    return select(Job.state, Job.generation).where(mine).order_by(Job.generation.desc()).limit(1)


def _answer(job: Row[JobState, int] | None, *, new: int) -> Registration:
    if job is None:
        return Registration(new=new, job_ready=False, generation=0)
    return Registration(new=new, job_ready=job.state is JobState.READY, generation=job.generation)


def _register(writer: Transaction, uid: str, instances: Sequence[SpooledInstance]) -> Registration:
    known = set(writer.execute(_contents(uid)))
    fresh = {(one.sop_instance_uid, one.sha256): one for one in sorted(instances, key=_arrival)}
    fresh = {content: one for content, one in fresh.items() if content not in known}
    generation = writer.execute(
        select(Study.generation).where(Study.study_instance_uid == uid)
    ).scalar_one_or_none()
    if generation is None:
        generation = 0
        study = {"study_instance_uid": uid, "generation": 0, "registered_at": writer.now}
        writer.execute(insert(Study), [study])
    rows = _judged(writer, uid, list(fresh.values()), {sop for sop, _ in known}, generation + 1)
    if rows:
        writer.execute(insert(Image), rows)
    gives_work = any(row["generation"] for row in rows)
    if _came_again(writer, uid, instances) or gives_work:
        generation += 1
        open_job(writer, uid, generation, _lane(writer, uid, list(fresh.values()) or instances))
    if rows:
        writer.note(Kind.REGISTERED, uid, generation=generation, images=[_told(row) for row in rows])
    conflicting = sum(row["disposition"] is Disposition.QUARANTINED for row in rows)
    answer = _answer(writer.execute(_newest_job(uid)).one_or_none(), new=len(rows))
    return replace(answer, conflicting=conflicting)


def _lane(writer: Transaction, uid: str, came: Sequence[SpooledInstance]) -> Lane:
    """The most urgent of what came, and of the job whose place the new one takes."""
    overtaken = (Job.study_instance_uid == uid, Job.state.in_(_UNFINISHED))
    before = writer.execute(select(Job.lane).where(*overtaken)).scalars()
    return most_urgent([*(one.lane for one in came), *(lane or Lane.ROUTINE for lane in before)])


def _came_again(writer: Transaction, uid: str, instances: Sequence[SpooledInstance]) -> bool:
    """Keep purged images that the spool holds once more; say whether the study was held for them."""
    came = {(one.sop_instance_uid, one.sha256): one.last_at for one in instances}
    gone = select(Image.id, Image.sop_instance_uid, Image.sha256, Image.received_at)
    gone = gone.where(Image.study_instance_uid == uid, Image.removed_at.is_not(None))
    # The moment at which a file was received tells it from another of its name, whoever's clocks differ:
    # what was listed before a purge is not what came after it.
    again = [
        (row, at)
        for row in writer.execute(gone).all()
        if (at := came.get((row.sop_instance_uid, row.sha256))) and at != row.received_at
    ]
    if not again:
        return False
    for row, at in again:
        kept = {"purged_at": None, "removed_at": None, "received_at": at}
        writer.execute(update(Image).where(Image.id == row.id).values(kept))
    images = [{"sop_instance_uid": row.sop_instance_uid, "sha256": row.sha256} for row, _ in again]
    writer.note(Kind.CAME_AGAIN, uid, images=images)
    return _end_hold(writer, uid)


def _end_hold(writer: Transaction, uid: str) -> bool:
    held = and_(Image.study_instance_uid == uid, Image.reason == Reason.FILE_PURGED)
    waiting = update(Image).where(held, Image.disposition == Disposition.QUARANTINED)
    freed = waiting.values(disposition=Disposition.PENDING, reason=None, sentence=None)
    return writer.execute(freed.returning(Image.id)).first() is not None


def _arrival(instance: SpooledInstance) -> tuple[datetime, str]:
    return instance.received_at, instance.sha256


def _judged(
    writer: Transaction, uid: str, fresh: list[SpooledInstance], seen: set[str], generation: int
) -> list[dict[str, Any]]:
    own = _own_outputs(writer, [one.sop_instance_uid for one in fresh])
    rows = []
    for one in fresh:
        reason = None
        if one.sop_instance_uid in own:
            reason = Reason.OWN_OUTPUT
        elif one.sop_instance_uid in seen:
            reason = Reason.CONFLICTING_CONTENT
        seen = seen | {one.sop_instance_uid}
        row = _row(one, uid, writer.now, reason, generation if reason is None else None)
        rows.append(row | {"path": writer.files.name(one.path)})
    return rows


def _row(
    one: SpooledInstance, uid: str, now: datetime, reason: Reason | None, generation: int | None
) -> dict[str, Any]:
    disposition, sentence = Disposition.PENDING, None
    if reason is Reason.OWN_OUTPUT:
        disposition, sentence = Disposition.BY_POLICY, "One of our own results came back."
    elif reason is Reason.CONFLICTING_CONTENT:
        disposition, sentence = (
            Disposition.QUARANTINED,
            "An earlier image has the same UID: the first wins.",
        )
    return {
        "study_instance_uid": uid,
        "series_instance_uid": one.series_instance_uid,
        "sop_instance_uid": one.sop_instance_uid,
        "sop_class_uid": one.sop_class_uid,
        "transfer_syntax_uid": one.transfer_syntax_uid,
        "sha256": one.sha256,
        "size": one.size,
        "calling_ae": one.calling_ae,
        "called_ae": one.called_ae,
        "address": one.address,
        "received_at": one.received_at,
        "registered_at": now,
        "generation": generation,
        "disposition": disposition,
        "reason": reason,
        "sentence": sentence,
    }


def _told(row: dict[str, Any]) -> dict[str, Any]:
    silent = {"study_instance_uid", "path", "registered_at"}
    return {key: value for key, value in row.items() if key not in silent}


def _own_outputs(writer: Transaction, sop_instance_uids: list[str]) -> set[str]:
    own: set[str] = set()
    for start in range(0, len(sop_instance_uids), _CHUNK):
        chunk = sop_instance_uids[start : start + _CHUNK]
        among = Output.sop_instance_uid.in_(chunk)
        own.update(writer.execute(select(Output.sop_instance_uid).where(among)).scalars())
    return own


def open_job(writer: Transaction, uid: str, generation: int, lane: Lane | None) -> None:
    """Make the job of a new generation, which takes the place of an unfinished one."""
    # A claimed one too: its worker learns at the next step that it works for nothing.
    overtaken = writer.execute(
        update(Job)
        .where(Job.study_instance_uid == uid, Job.state.in_(_UNFINISHED))
        .values(state=JobState.SUPERSEDED, finished_at=writer.now)
        .returning(Job.generation)
    ).scalars()
    for old in overtaken.all():
        writer.note(Kind.SUPERSEDED, uid, generation=old, by=generation)
    writer.execute(update(Study).where(Study.study_instance_uid == uid).values(generation=generation))
    job = {
        "study_instance_uid": uid,
        "generation": generation,
        "state": JobState.READY,
        "attempt": 0,
        "releases": 0,
        "fence": 0,
        "lane": lane,
        "not_before": writer.now,
        "created_at": writer.now,
    }
    writer.execute(insert(Job), [job])
