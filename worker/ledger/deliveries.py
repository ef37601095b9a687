"""Write-back: every output at every destination has a state, and proof of storage is kept apart from it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, exists, insert, select, update

from dicom_node.commitment import CommitmentReport
from worker.findings import Role
from worker.ledger.audit import Kind
from worker.ledger.models import Commitment, Delivery, DeliveryState, Output, Result
from worker.ledger.store import Store, Transaction

UNPROVEN = (DeliveryState.DUE, DeliveryState.STORED, DeliveryState.FAILED, DeliveryState.PARKED)
"""States in which the exact bytes may be needed once more."""

_SENDABLE = (
    DeliveryState.DUE,
    DeliveryState.STORED,
    DeliveryState.FAILED,
    DeliveryState.PARKED,
    DeliveryState.CANCELLED,  # it may be under way while a newer result cancels it
)
_RESEND_CAP = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class DueDelivery:
    """An output that is to be sent to, or proven at, one destination."""

    delivery_id: int
    study_instance_uid: str
    role: Role
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    path: Path
    sha256: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class CommitmentOutcome:
    """What a commitment report changed."""

    known: bool
    """Whether we asked for this transaction."""
    committed: int
    failed: int
    """Objects that the destination does not hold: they are sent again."""


@dataclass(frozen=True, kw_only=True)
class DroppableOutput:
    """An output that every destination has answered for."""

    sop_instance_uid: str
    path: Path


class Deliveries(Store):
    """Keeps the deliverer's state, so that a restart forgets nothing."""

    def due_deliveries(self, destination: str, limit: int) -> list[DueDelivery]:
        """What is to be sent to the destination now, the longest-waiting first."""
        due = (Delivery.state == DeliveryState.DUE, Delivery.due_at <= self._clock())
        return self._deliveries(destination, due, limit)

    def stored_unverified(self, destination: str, limit: int) -> list[DueDelivery]:
        """What the destination has stored, and no open commitment request asks about."""
        is_open = exists().where(
            Commitment.delivery_id == Delivery.id,
            Commitment.reported_at.is_(None),
            Commitment.deadline > self._clock(),
        )
        return self._deliveries(destination, (Delivery.state == DeliveryState.STORED, ~is_open), limit)

    def delivery_sent(self, delivery_id: int, status: int) -> None:
        """Note that the destination stored the object."""
        with self._writing() as writer:
            row = _find(writer, delivery_id, _SENDABLE)
            if row is not None:
                change = {"state": DeliveryState.STORED, "stored_at": writer.now, "sentence": None}
                _move(writer, row, Kind.STORED, change | _tried(row, status))

    def delivery_retry(self, delivery_id: int, status: int | None, not_before: datetime) -> None:
        """Note a try without success (`status` None: no answer), and when to try again."""
        with self._writing() as writer:
            row = _find(writer, delivery_id, (DeliveryState.DUE, DeliveryState.STORED))
            if row is None:
                return
            change = _due_again(row, not_before) | _tried(row, status)
            # A destination that is away for a weekend leaves one event, not thousands.
            says_something_new = row.attempts == 0 or status != row.last_status
            _move(writer, row, Kind.NOT_STORED if says_something_new else None, change)

    def delivery_failed(self, delivery_id: int, status: int, sentence: str) -> None:
        """Set the delivery aside: the destination refuses the object, and people must act."""
        self._set_aside(delivery_id, Kind.FAILED, DeliveryState.FAILED, status, sentence)

    def delivery_parked(self, delivery_id: int, status: int) -> None:
        """Set the delivery aside: the destination does not take such objects, or us."""
        sentence = f"The destination does not accept this kind of object from us (0x{status:04X})."
        self._set_aside(delivery_id, Kind.PARKED, DeliveryState.PARKED, status, sentence)

    def delivery_verified(self, delivery_id: int) -> None:
        """Note that a query found the object at the destination."""
        with self._writing() as writer:
            row = _find(writer, delivery_id, (DeliveryState.STORED,))
            if row is not None:
                change = {"state": DeliveryState.VERIFIED, "proven_at": writer.now}
                _move(writer, row, Kind.VERIFIED, change)

    def request_commitment(
        self, delivery_ids: Sequence[int], transaction_uid: str, deadline: datetime
    ) -> None:
        """Note that the destination is about to be asked for these objects; once a transaction."""
        with self._writing() as writer:
            mine = Commitment.transaction_uid == transaction_uid
            known = set(writer.execute(select(Commitment.delivery_id).where(mine)).scalars())
            fresh = [one for one in dict.fromkeys(delivery_ids) if one not in known]
            if not fresh:
                return
            facts = {"transaction_uid": transaction_uid, "deadline": deadline}
            rows = [{**facts, "delivery_id": one, "requested_at": writer.now} for one in fresh]
            writer.execute(insert(Commitment), rows)
            for row in writer.execute(_facts().where(Delivery.id.in_(fresh))).all():
                _note(writer, row, Kind.COMMITMENT_REQUESTED, **facts)

    def commitment_reported(self, report: CommitmentReport) -> CommitmentOutcome:
        """Take over the destination's answer; an answer to an older request counts as well.

        What it does not hold becomes due again, after a pause that doubles with every try.
        """
        with self._writing() as writer:
            mine = Commitment.transaction_uid == report.transaction_uid
            asked = _facts().join(Commitment, Commitment.delivery_id == Delivery.id).where(mine)
            rows = {row.sop_instance_uid: row for row in writer.execute(asked).all()}
            committed = [rows[sop] for sop in report.committed if sop in rows]
            failed = [(rows[sop], reason) for sop, reason in report.failed if sop in rows]
            answered = [row.id for row in committed] + [row.id for row, _ in failed]
            if answered:
                reported = update(Commitment).where(mine, Commitment.delivery_id.in_(answered))
                writer.execute(reported.values(reported_at=writer.now))
            return CommitmentOutcome(
                known=bool(rows),
                committed=sum(_commit(writer, row, report.transaction_uid) for row in committed),
                failed=sum(_not_held(writer, row, reason, report.transaction_uid) for row, reason in failed),
            )

    def outputs_to_drop(self, *, trusted: Collection[str] = (), limit: int = 1000) -> list[DroppableOutput]:
        """Outputs whose bytes nobody needs any more: proven, or cancelled, at every destination.

        At the `trusted` destinations stored is enough: they are not asked for proof. An output that goes
        nowhere stays.
        """
        mine = Delivery.output_id == Output.id
        settled = (Delivery.state == DeliveryState.STORED) & Delivery.destination.in_(trusted)
        needed = exists().where(mine, Delivery.state.in_(UNPROVEN), ~settled)
        droppable = (
            select(Output.sop_instance_uid, Output.path)
            .where(Output.dropped_at.is_(None), exists().where(mine), ~needed)
            .order_by(Output.id)
            .limit(limit)
        )
        with self._reading() as connection:
            rows = connection.execute(droppable).all()
        return [DroppableOutput(sop_instance_uid=row.sop_instance_uid, path=Path(row.path)) for row in rows]

    def output_dropped(self, sop_instance_uid: str) -> None:
        """Note that the bytes of an output are no longer kept."""
        with self._writing() as writer:
            kept = (Output.sop_instance_uid == sop_instance_uid, Output.dropped_at.is_(None))
            dropped = update(Output).where(*kept).values(dropped_at=writer.now).returning(Output.result_id)
            result_id = writer.execute(dropped).scalar_one_or_none()
            if result_id is not None:
                study = select(Result.study_instance_uid).where(Result.id == result_id)
                uid = writer.execute(study).scalar_one()
                writer.note(Kind.OUTPUT_DROPPED, uid, sop_instance_uid=sop_instance_uid)

    def _deliveries(
        self, destination: str, where: Iterable[ColumnElement[bool]], limit: int
    ) -> list[DueDelivery]:
        rows = _facts().where(Delivery.destination == destination, *where)
        with self._reading() as connection:
            found = connection.execute(rows.order_by(Delivery.due_at, Delivery.id).limit(limit)).all()
        return [
            DueDelivery(
                delivery_id=row.id,
                study_instance_uid=row.study_instance_uid,
                role=row.role,
                sop_class_uid=row.sop_class_uid,
                sop_instance_uid=row.sop_instance_uid,
                series_instance_uid=row.series_instance_uid,
                path=Path(row.path),
                sha256=row.sha256,
                attempts=row.attempts,
            )
            for row in found
        ]

    def _set_aside(
        self, delivery_id: int, kind: Kind, state: DeliveryState, status: int, sentence: str
    ) -> None:
        with self._writing() as writer:
            row = _find(writer, delivery_id, (DeliveryState.DUE,))
            if row is not None:
                _move(writer, row, kind, {"state": state, "sentence": sentence} | _tried(row, status))


def _facts() -> Select[*tuple[Any, ...]]:
    return (
        select(
            Delivery.__table__,
            Output.role,
            Output.sop_class_uid,
            Output.sop_instance_uid,
            Output.series_instance_uid,
            Output.path,
            Output.sha256,
            Result.study_instance_uid,
            Result.superseded_at,
        )
        .join_from(Delivery, Output, Delivery.output_id == Output.id)
        .join(Result, Output.result_id == Result.id)
    )


def _find(writer: Transaction, delivery_id: int, states: Collection[DeliveryState]) -> Row[Any] | None:
    """Return the delivery if it is in one of the states, else None: there is nothing to change."""
    wanted = _facts().where(Delivery.id == delivery_id, Delivery.state.in_(states))
    return writer.execute(wanted).one_or_none()


def _tried(row: Row[Any], status: int | None) -> dict[str, Any]:
    return {"attempts": row.attempts + 1, "last_status": status}


def _due_again(row: Row[Any], not_before: datetime) -> dict[str, Any]:
    # What a newer result has superseded need not arrive any more.
    state = DeliveryState.DUE if row.superseded_at is None else DeliveryState.CANCELLED
    return {"state": state, "due_at": not_before}


def _move(writer: Transaction, row: Row[Any], kind: Kind | None, change: dict[str, Any], **told: Any) -> None:
    writer.execute(update(Delivery).where(Delivery.id == row.id).values(change))
    if kind is not None:
        public = {key: change[key] for key in ("attempts", "last_status", "sentence") if key in change}
        _note(writer, row, kind, **public, **told)


def _note(writer: Transaction, row: Row[Any], kind: Kind, **told: Any) -> None:
    output = {"sop_instance_uid": row.sop_instance_uid, "destination": row.destination}
    writer.note(kind, row.study_instance_uid, **output, **told)


def _commit(writer: Transaction, row: Row[Any], transaction_uid: str) -> bool:
    if row.state in (DeliveryState.COMMITTED, DeliveryState.VERIFIED):
        return False
    change = {"state": DeliveryState.COMMITTED, "proven_at": writer.now}
    _move(writer, row, Kind.COMMITTED, change, transaction_uid=transaction_uid)
    return True


def _not_held(writer: Transaction, row: Row[Any], reason: int, transaction_uid: str) -> bool:
    if row.state is not DeliveryState.STORED:
        return False
    pause = min(timedelta(seconds=2.0 ** min(row.attempts, 32)), _RESEND_CAP)
    change = _due_again(row, writer.now + pause)
    told = {"transaction_uid": transaction_uid, "reason": reason}
    _move(writer, row, Kind.COMMITMENT_FAILED, change, **told)
    return True
