"""Write-back: every output at every destination has a state, and proof of storage is kept apart from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, exists, or_, select, update

from worker.findings import NOTICES, Role
from worker.ledger.audit import Kind
from worker.ledger.models import Delivery, DeliveryState, Output, RecalledModel, Result, Study
from worker.ledger.store import SET_BACK, Store, Transaction

_TOLD = 4
"""Rounds of storing, missing and sending again that are told one by one."""
_SENDABLE = (
    DeliveryState.DUE,
    DeliveryState.STORED,
    DeliveryState.FAILED,
    DeliveryState.PARKED,
    DeliveryState.CANCELLED,  # it may be under way while a newer result cancels it
)


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
    refusals: int
    """Times in a row that the destination said it cannot understand the object."""


@dataclass(frozen=True, kw_only=True)
class Proven:
    """An object of which a destination has shown that it holds it."""

    destination: str
    study_instance_uid: str
    sop_instance_uid: str
    seconds: float
    """From its storage there to the proof."""


class Deliveries(Store):
    """Keeps the deliverer's state, so that a restart forgets nothing."""

    def due_deliveries(self, destination: str, limit: int) -> list[DueDelivery]:
        """What is to be sent to the destination now, the longest-waiting first.

        Nothing of a study whose images name different patients, and no result of a model that is recalled,
        whether or not its recall has come that far.
        """
        return self._deliveries(destination, _is_due, limit)

    def still_due(self, delivery_ids: Collection[int]) -> set[int]:
        """Which of these are still to be sent."""
        with self._reading() as connection:
            due = _is_due(self._now(connection))
            mine = select(Delivery.id).join(Output, Delivery.output_id == Output.id)
            mine = mine.join(Result, Output.result_id == Result.id).where(Delivery.id.in_(delivery_ids), *due)
            return set(connection.execute(mine).scalars())

    def deliveries_sent(self, statuses: Mapping[int, int]) -> None:
        """Note that the destination stored these objects: delivery id -> status."""
        if not statuses:
            return
        with self._writing() as writer:
            wanted = facts().where(Delivery.id.in_(statuses), Delivery.state.in_(_SENDABLE))
            for row in writer.execute(wanted.order_by(Delivery.id)).all():
                change = {"state": DeliveryState.STORED, "stored_at": writer.now, "sentence": None}
                kind = Kind.STORED if row.stored_at is None or is_told(row.misses or 0) else None
                move(writer, row, kind, change | _tried(row, statuses[row.id]))

    def delivery_retry(
        self, delivery_id: int, status: int | None, pause: timedelta, *, refused: bool = False
    ) -> None:
        """Note a try without success (`status` None: no answer), and how long to wait before the next.

        Refusals are counted as long as nothing else comes between them.
        """
        self.deliveries_retry([delivery_id], status, pause, refused=refused)

    def deliveries_retry(
        self, delivery_ids: Collection[int], status: int | None, pause: timedelta, *, refused: bool = False
    ) -> None:
        """Note the same of many, in one transaction: a destination that is away is so for all of them."""
        if not delivery_ids:
            return
        with self._writing() as writer:
            wanted = facts().where(Delivery.id.in_(delivery_ids), Delivery.state == DeliveryState.DUE)
            for row in writer.execute(wanted.order_by(Delivery.id)).all():
                refusals = row.refusals + 1 if refused else 0
                change = {"due_at": writer.now + pause} | _tried(row, status) | {"refusals": refusals}
                # A destination that is away for a weekend leaves one event, not thousands.
                says_something_new = row.attempts == 0 or status != row.last_status
                move(writer, row, Kind.NOT_STORED if says_something_new else None, change)

    def delivery_failed(self, delivery_id: int, status: int | None, sentence: str) -> None:
        """Set the delivery aside: it is refused or its bytes are gone, and people must act."""
        self._set_aside(delivery_id, Kind.FAILED, DeliveryState.FAILED, status, sentence)

    def delivery_parked(self, delivery_id: int, status: int) -> None:
        """Set the delivery aside: the destination does not take such objects, or us."""
        sentence = f"The destination does not accept this kind of object from us (0x{status:04X})."
        self._set_aside(delivery_id, Kind.PARKED, DeliveryState.PARKED, status, sentence)

    def delivery_verified(self, delivery_id: int) -> Proven | None:
        """Note that a query found the object at the destination; None when that is known already."""
        with self._writing() as writer:
            row = _find(writer, delivery_id, (DeliveryState.STORED,))
            if row is not None:
                change = {"state": DeliveryState.VERIFIED, "proven_at": writer.now}
                move(writer, row, Kind.VERIFIED, change)
                return proof_of(row, writer.now)
        return None

    def delivery_missing(self, delivery_id: int, pause: timedelta) -> None:
        """Note that a query did not find an object that was stored: the same bytes are sent again."""
        with self._writing() as writer:
            row = _find(writer, delivery_id, (DeliveryState.STORED,))
            if row is not None:
                missed(writer, row, Kind.NOT_FOUND, writer.now + pause)

    def _deliveries(
        self, destination: str, where: Callable[[datetime], Iterable[ColumnElement[bool]]], limit: int
    ) -> list[DueDelivery]:
        with self._reading() as connection:
            rows = facts().where(Delivery.destination == destination, *where(self._now(connection)))
            found = connection.execute(rows.order_by(Delivery.due_at, Delivery.id).limit(limit)).all()
        return [
            DueDelivery(
                delivery_id=row.id,
                study_instance_uid=row.study_instance_uid,
                role=row.role,
                sop_class_uid=row.sop_class_uid,
                sop_instance_uid=row.sop_instance_uid,
                series_instance_uid=row.series_instance_uid,
                path=self._files.locate(row.path),
                sha256=row.sha256,
                attempts=row.attempts,
                refusals=row.refusals,
            )
            for row in found
        ]

    def _set_aside(
        self, delivery_id: int, kind: Kind, state: DeliveryState, status: int | None, sentence: str
    ) -> None:
        with self._writing() as writer:
            row = _find(writer, delivery_id, (DeliveryState.DUE,))
            if row is not None:
                move(writer, row, kind, {"state": state, "sentence": sentence} | _tried(row, status))


def _is_due(now: datetime) -> tuple[ColumnElement[bool], ...]:
    mine = Study.study_instance_uid == Result.study_instance_uid
    conflict = exists().where(mine, Study.conflict_at.is_not(None))
    withdrawn = exists().where(RecalledModel.model_sha256 == Result.model_sha256)
    at = Delivery.due_at
    may_go = or_(Output.role.in_(NOTICES), ~withdrawn)
    return Delivery.state == DeliveryState.DUE, or_(at <= now, at > now + SET_BACK), ~conflict, may_go


def facts() -> Select[*tuple[Any, ...]]:
    """Select every delivery with what it delivers."""
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


def proof_of(row: Row[Any], now: datetime) -> Proven:
    """What is known of a delivery at the moment of its proof."""
    return Proven(
        destination=row.destination,
        study_instance_uid=row.study_instance_uid,
        sop_instance_uid=row.sop_instance_uid,
        seconds=max((now - (row.stored_at or now)).total_seconds(), 0.0),
    )


def _find(writer: Transaction, delivery_id: int, states: Collection[DeliveryState]) -> Row[Any] | None:
    """Return the delivery if it is in one of the states, else None: there is nothing to change."""
    wanted = facts().where(Delivery.id == delivery_id, Delivery.state.in_(states))
    return writer.execute(wanted).one_or_none()


def _tried(row: Row[Any], status: int | None) -> dict[str, Any]:
    return {"attempts": row.attempts + 1, "last_status": status, "refusals": 0}


def due_again(row: Row[Any], not_before: datetime) -> dict[str, Any]:
    """The change that has an object sent again, unless a newer result has superseded it."""
    needed = row.superseded_at is None or row.role in NOTICES
    state = DeliveryState.DUE if needed else DeliveryState.CANCELLED
    return {"state": state, "due_at": not_before}


def missed(writer: Transaction, row: Row[Any], kind: Kind, not_before: datetime, **told: Any) -> None:
    """Have an object sent again that was stored and is not shown."""
    misses = (row.misses or 0) + 1
    change = due_again(row, not_before) | {"misses": misses}
    move(writer, row, kind if is_told(misses) else None, change, **told)


def is_told(misses: int) -> bool:
    """Whether the trail tells of this round, of which there is no last one: of the first ones and, for ever
    more seldom, of later ones. What is in the trail stays there."""
    return misses < _TOLD or misses & (misses - 1) == 0


def move(writer: Transaction, row: Row[Any], kind: Kind | None, change: dict[str, Any], **told: Any) -> None:
    """Change a delivery and, if the change has a kind, leave an event."""
    writer.execute(update(Delivery).where(Delivery.id == row.id).values(change))
    if kind is not None:
        public = {key: change[key] for key in ("attempts", "last_status", "sentence") if key in change}
        note(writer, row, kind, **public, **told)


def note(writer: Transaction, row: Row[Any], kind: Kind, **told: Any) -> None:
    """Leave an event about a delivery."""
    output = {"sop_instance_uid": row.sop_instance_uid, "destination": row.destination}
    writer.note(kind, row.study_instance_uid, **output, **told)
