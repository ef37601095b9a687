"""Reads for people and for metrics: the whole in numbers, the list of studies, one study in full."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, and_, func, select
from sqlalchemy.orm import InstrumentedAttribute

from worker.ledger import audit
from worker.ledger.models import (
    Delivery,
    DeliveryState,
    Disposition,
    Event,
    Image,
    Job,
    JobState,
    Output,
    Result,
    Study,
)
from worker.ledger.records import (
    DeliveryRecord,
    EventRecord,
    ImageRecord,
    JobRecord,
    LedgerStatus,
    OutputRecord,
    ResultRecord,
    StudyRecord,
    StudySummary,
)
from worker.ledger.store import Store

_T = TypeVar("_T")


class Views(Store):
    """Each method reads one snapshot. All raise Retryable when the database is away or busy."""

    def status(self) -> LedgerStatus:
        """Count everything, station by station."""
        with self._reading() as connection:
            return _status(connection, self._now(connection))

    def studies(self, limit: int = 50) -> list[StudySummary]:
        """The studies that were registered last, newest first."""
        with self._reading() as connection:
            return _summaries(connection, limit)

    def studies_that_end(self, end: str) -> list[str]:
        """StudyInstanceUIDs with an end, two at the most: whoever asks means one."""
        mine = Study.study_instance_uid.endswith(end, autoescape=True)
        with self._reading() as connection:
            return list(connection.execute(select(Study.study_instance_uid).where(mine).limit(2)).scalars())

    def study(self, study_instance_uid: str) -> StudyRecord | None:
        """Everything about one study, oldest first, or None when it was never registered."""
        with self._reading() as connection:
            mine = Study.study_instance_uid == study_instance_uid
            study = connection.execute(select(Study.__table__).where(mine)).one_or_none()
            if study is None:
                return None
            return _record(
                StudyRecord,
                study,
                images=_records(ImageRecord, _of_study(connection, Image, study_instance_uid)),
                jobs=_records(JobRecord, _of_study(connection, Job, study_instance_uid)),
                results=_results(connection, study_instance_uid),
                events=_events(connection, study_instance_uid),
            )


def _status(connection: Connection, now: datetime) -> LedgerStatus:
    by_policy = _counts(connection, Image.reason, Image.disposition == Disposition.BY_POLICY)
    quarantined = _counts(connection, Image.reason, Image.disposition == Disposition.QUARANTINED)
    images = _counts(connection, Image.disposition)
    jobs = _counts(connection, Job.state)
    decisions = _counts(connection, Result.decision, Result.superseded_at.is_(None))
    deliveries: dict[str, dict[DeliveryState, int]] = {}
    where = (Delivery.destination, Delivery.state)
    per_state = select(*where, func.count()).group_by(*where).order_by(*where)
    for destination, state, count in connection.execute(per_state):
        deliveries.setdefault(destination, {})[state] = count
    return LedgerStatus(
        studies=connection.execute(select(func.count()).select_from(Study)).scalar_one(),
        images={state: images.get(state, 0) for state in Disposition},
        by_policy={reason: count for reason, count in by_policy.items() if reason is not None},
        quarantined={reason: count for reason, count in quarantined.items() if reason is not None},
        purged=connection.execute(
            select(func.count()).select_from(Image).where(Image.purged_at.is_not(None))
        ).scalar_one(),
        jobs={state: jobs.get(state, 0) for state in JobState},
        results={decision or "not_analysed": count for decision, count in decisions.items()},
        deliveries=deliveries,
        oldest_seconds=_ages(connection, now),
        head=audit.read_head(connection),
    )


def _counts(
    connection: Connection, column: InstrumentedAttribute[_T], *where: ColumnElement[bool]
) -> dict[_T, int]:
    counted = select(column, func.count()).where(*where).group_by(column).order_by(column)
    return dict(connection.execute(counted).all())


def _ages(connection: Connection, now: datetime) -> dict[str, float]:
    oldest = {
        "pending": select(func.min(Image.received_at)).where(Image.disposition == Disposition.PENDING),
        "ready": select(func.min(Job.created_at)).where(Job.state == JobState.READY),
        "claimed": select(func.min(Job.claimed_at)).where(Job.state == JobState.CLAIMED),
        "due": select(func.min(Delivery.created_at)).where(Delivery.state == DeliveryState.DUE),
        "stored": select(func.min(Delivery.stored_at)).where(Delivery.state == DeliveryState.STORED),
    }
    times = {name: connection.execute(query).scalar_one() for name, query in oldest.items()}
    return {name: (now - at).total_seconds() for name, at in times.items() if at is not None}


def _summaries(connection: Connection, limit: int) -> list[StudySummary]:
    in_force = Result.superseded_at.is_(None)
    newest_job = and_(Job.study_instance_uid == Study.study_instance_uid, Job.generation == Study.generation)
    result = and_(Result.study_instance_uid == Study.study_instance_uid, in_force)
    rows = connection.execute(
        select(Study.__table__, Job.state.label("job"), Job.reason, Result.decision, Result.probability)
        .select_from(Study)
        .outerjoin(Job, newest_job)
        .outerjoin(Result, result)
        .order_by(Study.registered_at.desc(), Study.study_instance_uid)
        .limit(limit)
    ).all()
    listed = [row.study_instance_uid for row in rows]
    mine = Image.study_instance_uid
    images = dict(connection.execute(select(mine, func.count()).where(mine.in_(listed)).group_by(mine)).all())
    deliveries: dict[str, dict[DeliveryState, int]] = {uid: {} for uid in listed}
    per_state = (
        select(Result.study_instance_uid, Delivery.state, func.count())
        .join_from(Delivery, Output, Delivery.output_id == Output.id)
        .join(Result, Output.result_id == Result.id)
        .where(in_force, Result.study_instance_uid.in_(listed))
        .group_by(Result.study_instance_uid, Delivery.state)
    )
    for uid, state, count in connection.execute(per_state):
        deliveries[uid][state] = count
    return [
        _record(
            StudySummary,
            row,
            images=images.get(row.study_instance_uid, 0),
            deliveries=deliveries[row.study_instance_uid],
        )
        for row in rows
    ]


def _of_study(connection: Connection, table: type[Image | Job | Result], uid: str) -> list[Row[Any]]:
    mine = select(table.__table__).where(table.study_instance_uid == uid)
    return list(connection.execute(mine.order_by(table.id)).all())


def _results(connection: Connection, uid: str) -> tuple[ResultRecord, ...]:
    results = _of_study(connection, Result, uid)
    of_results = Output.result_id.in_([result.id for result in results])
    outputs = connection.execute(select(Output.__table__).where(of_results).order_by(Output.id)).all()
    of_outputs = Delivery.output_id.in_([output.id for output in outputs])
    deliveries = connection.execute(select(Delivery.__table__).where(of_outputs).order_by(Delivery.id)).all()
    return tuple(
        _record(
            ResultRecord,
            result,
            outputs=tuple(
                _record(
                    OutputRecord,
                    output,
                    deliveries=_records(DeliveryRecord, [d for d in deliveries if d.output_id == output.id]),
                )
                for output in outputs
                if output.result_id == result.id
            ),
        )
        for result in results
    )


def _events(connection: Connection, uid: str) -> tuple[EventRecord, ...]:
    mine = select(Event.__table__).where(Event.study_instance_uid == uid).order_by(Event.seq)
    return tuple(_record(EventRecord, row, body=json.loads(row.body)) for row in connection.execute(mine))


def _records(kind: type[_T], rows: Iterable[Row[Any]]) -> tuple[_T, ...]:
    return tuple(_record(kind, row) for row in rows)


def _record(kind: type[_T], row: Row[Any], **given: Any) -> _T:
    names = [field.name for field in fields(kind) if field.name not in given]  # type: ignore[arg-type]
    return kind(**{name: row._mapping[name] for name in names}, **given)
