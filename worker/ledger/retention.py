"""Which received files may go, and that they went. The rows of their images stay for ever."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Text,
    and_,
    exists,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute

from dicom_node.incoming import SpooledInstance
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
    Study,
)
from worker.ledger.store import Store

_PROVEN = (DeliveryState.COMMITTED, DeliveryState.VERIFIED)
_UID_OF_NO_INDEX: ColumnElement[str] = literal_column("''", Text()).concat(Image.study_instance_uid)
"""Grouped by the column itself, SQLite reads every image ever registered, in the order of its index: what
is still here is few, and has an index of its own."""


@dataclass(frozen=True, kw_only=True)
class PurgeRule:
    """What must be true of a study before its received files go."""

    received_before: datetime
    """Every image of the study came before this moment."""
    trusted: tuple[str, ...] = ()
    """Destinations at which stored is enough: they are not asked for proof."""
    quarantined: bool = False
    """Whether quarantined images go as well, and studies that wait for people because of them."""


@dataclass(frozen=True, kw_only=True)
class PurgeableStudy:
    """A study whose received files may go."""

    study_instance_uid: str
    images: int
    size: int
    """Bytes of their data sets."""


@dataclass(frozen=True, kw_only=True)
class LeavingFile:
    """A file that is to be removed: that is decided and recorded."""

    image_id: int
    purged_at: datetime
    path: Path
    received_at: datetime
    """Of the file that goes, last. One of the same name that was received after that has come again."""


class Retention(Store):
    """A file goes only when nothing can ask for it again: first that is recorded, then it is removed."""

    def purgeable(self, rule: PurgeRule) -> list[PurgeableStudy]:
        """Studies whose received files may go, those that came first at the front."""
        with self._reading() as connection:
            rows = connection.execute(_purgeable(rule, _UID_OF_NO_INDEX)).all()
        return [PurgeableStudy(study_instance_uid=row[0], images=row[1], size=int(row[2])) for row in rows]

    def purge(
        self, studies: Collection[str], rule: PurgeRule, spooled: Iterable[SpooledInstance] = ()
    ) -> int:
        """Record that the files of these studies go, and return how many; at most a few hundred studies.

        A study of which that is not true any more, because an image came meanwhile, is passed over.

        Args:
            studies: of which files may go.
            rule: by which they may.
            spooled: their files. One that was sent twice was last received at another moment than its image
                was registered with, and goes nevertheless.
        """
        with self._writing() as writer:
            among = Image.study_instance_uid.in_(studies)
            still = [row[0] for row in writer.execute(_purgeable(rule).where(among))]
            told = (Image.sop_instance_uid, Image.sha256, Image.size, Image.received_at, Image.disposition)
            going = (Image.study_instance_uid.in_(still), *_goes(rule))
            gone = update(Image).where(*going).values(purged_at=writer.now)
            rows = writer.execute(gone.returning(Image.study_instance_uid, *told)).all()
            for uid in still:
                images = [_told(row) for row in rows if row.study_instance_uid == uid]
                writer.note(Kind.PURGED, uid, received_before=rule.received_before, images=images)
            going_at = {(row.sop_instance_uid, row.sha256): row.received_at for row in rows}
            for one in spooled:
                of = (one.sop_instance_uid, one.sha256)
                if of in going_at and going_at[of] != one.last_at:
                    mine = (Image.sop_instance_uid == of[0], Image.sha256 == of[1])
                    writer.execute(
                        update(Image)
                        .where(Image.study_instance_uid == one.study_instance_uid, *mine)
                        .values(received_at=one.last_at)
                    )
            return len(rows)

    def leaving(self, *, limit: int, after: LeavingFile | None = None) -> list[LeavingFile]:
        """Files that are to be removed; after a crash also those that were begun before it.

        Those behind `after`, so that files which the disk does not let go keep back no others.
        """
        waiting = select(Image.id, Image.purged_at, Image.path, Image.received_at)
        waiting = waiting.where(Image.purged_at.is_not(None), Image.removed_at.is_(None))
        if after is not None:
            waiting = waiting.where(tuple_(Image.purged_at, Image.id) > (after.purged_at, after.image_id))
        with self._reading() as connection:
            rows = connection.execute(waiting.order_by(Image.purged_at, Image.id).limit(limit)).all()
        return [
            LeavingFile(
                image_id=row.id,
                purged_at=row.purged_at,
                path=self._files.locate(row.path),
                received_at=row.received_at,
            )
            for row in rows
        ]

    def removed(self, files: Sequence[LeavingFile]) -> None:
        """Note that these files are gone; up to 1000 of them."""
        if not files:
            return
        with self._writing() as writer:
            mine = Image.id.in_([one.image_id for one in files])
            writer.execute(update(Image).where(mine).values(removed_at=writer.now))


def _told(row: Row[*tuple[object, ...]]) -> dict[str, object]:
    return {key: value for key, value in row._asdict().items() if key != "study_instance_uid"}


def _purgeable(
    rule: PurgeRule, uid: ColumnElement[str] | InstrumentedAttribute[str] = Image.study_instance_uid
) -> Select[str, int, int]:
    return (
        select(uid, func.count(), func.sum(Image.size))
        .join(Study, Study.study_instance_uid == Image.study_instance_uid)
        .where(
            *_goes(rule),
            Image.received_at < rule.received_before,
            _rests(rule),
            ~_stays(rule),
            ~_unproven(rule),
            ~_recalled(),
        )
        .group_by(uid)
        .order_by(func.min(Image.received_at), uid)
    )


def _goes(rule: PurgeRule) -> Iterable[ColumnElement[bool]]:
    ends = [Disposition.SCORED, Disposition.BY_POLICY]
    if rule.quarantined:
        ends.append(Disposition.QUARANTINED)
    return Image.purged_at.is_(None), Image.disposition.in_(ends)


def _rests(rule: PurgeRule) -> ColumnElement[bool]:
    """Whether nobody works on the study or is to."""
    ends = [JobState.DONE, JobState.QUARANTINED] if rule.quarantined else [JobState.DONE]
    newest = and_(Job.study_instance_uid == Study.study_instance_uid, Job.generation == Study.generation)
    return or_(Study.generation == 0, exists().where(newest, Job.state.in_(ends)))


def _stays(rule: PurgeRule) -> ColumnElement[bool]:
    """Whether one of its images keeps all of them: `retry` reads them together."""
    other = Image.__table__.alias("other")
    keeps = [other.c.received_at >= rule.received_before, other.c.disposition == Disposition.PENDING]
    if not rule.quarantined:
        set_aside = and_(other.c.disposition == Disposition.QUARANTINED, other.c.generation.is_not(None))
        keeps.append(and_(set_aside, other.c.purged_at.is_(None)))
    return exists().where(other.c.study_instance_uid == Study.study_instance_uid, or_(*keeps))


def _unproven(rule: PurgeRule) -> ColumnElement[bool]:
    """Whether an output of the result in force is not proven somewhere, or goes nowhere."""
    mine = Delivery.output_id == Output.id
    trusted = and_(Delivery.state == DeliveryState.STORED, Delivery.destination.in_(rule.trusted))
    open_somewhere = exists().where(mine, Delivery.state.not_in(_PROVEN), ~trusted)
    return exists().where(
        Result.study_instance_uid == Study.study_instance_uid,
        Result.superseded_at.is_(None),
        Output.result_id == Result.id,
        or_(open_somewhere, ~exists().where(mine)),
    )


def _recalled() -> ColumnElement[bool]:
    """Whether a recall has left it without a result: its films are needed to score it again."""
    mine = Result.study_instance_uid == Study.study_instance_uid
    in_force = exists().where(mine, Result.superseded_at.is_(None))
    return and_(exists().where(mine, Result.recalled_at.is_not(None)), ~in_force)
