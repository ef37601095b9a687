"""Proof of storage: which objects a destination was asked about, and what it answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, exists, func, insert, select, update
from sqlalchemy.orm import aliased

from dicom_node.commitment import CommitmentReport
from worker.ledger.audit import Kind
from worker.ledger.deliveries import Deliveries, DueDelivery, Proven, facts, missed, move, note, proof_of
from worker.ledger.models import Commitment, Delivery, DeliveryState
from worker.ledger.store import SET_BACK, Transaction

_RESEND_CAP = timedelta(minutes=10)
_LONGEST_WAIT = timedelta(hours=1)
_FORGOTTEN = timedelta(days=7)
"""After its deadline; until then an answer to an older request counts."""


@dataclass(frozen=True, kw_only=True)
class CommitmentOutcome:
    """What a commitment report changed."""

    known: bool
    """Whether we asked for this transaction."""
    committed: int
    failed: int
    """Objects that the destination does not hold: they are sent again."""
    proven: tuple[Proven, ...] = ()
    """The committed ones."""
    missing: tuple[tuple[str, str, str], ...] = ()
    """Destination, study and SOP instance of the failed ones."""


class Commitments(Deliveries):
    """Keeps what was asked, so that an answer may come late, twice, or never."""

    def stored_unverified(self, destination: str, limit: int) -> list[DueDelivery]:
        """What the destination has stored, and no open commitment request asks about."""

        def unasked(now: datetime) -> tuple[ColumnElement[bool], ...]:
            mine = (Commitment.delivery_id == Delivery.id, Commitment.reported_at.is_(None))
            waits = (Commitment.deadline > now, Commitment.requested_at < now + SET_BACK)
            is_open = exists().where(*mine, *waits)
            return Delivery.state == DeliveryState.STORED, ~is_open

        return self._deliveries(destination, unasked, limit)

    def request_commitment(
        self, delivery_ids: Sequence[int], transaction_uid: str, patience: timedelta
    ) -> None:
        """Note that the destination is about to be asked for these objects; once a transaction.

        An answer is waited for `patience`, and for twice as long as the last time when there was none. A
        destination that never answers leaves one event an object, not one a request.
        """
        with self._writing() as writer:
            mine = Commitment.transaction_uid == transaction_uid
            known = set(writer.execute(select(Commitment.delivery_id).where(mine)).scalars())
            fresh = [one for one in dict.fromkeys(delivery_ids) if one not in known]
            if not fresh:
                return
            asked = _asked_before(writer, fresh)
            told = {"transaction_uid": transaction_uid, "requested_at": writer.now}
            deadlines = {one: writer.now + _wait(patience, asked[one]) for one in fresh}
            old = _forgotten(writer, fresh)
            for one, row_id in old.items():
                again = {**told, "deadline": deadlines[one], "status": None}
                writer.execute(update(Commitment).where(Commitment.id == row_id).values(again))
            new = [one for one in fresh if one not in old]
            if new:
                rows = [{**told, "delivery_id": one, "deadline": deadlines[one]} for one in new]
                writer.execute(insert(Commitment), rows)
            for row in writer.execute(facts().where(Delivery.id.in_(fresh))).all():
                if not asked[row.id]:
                    told = {"transaction_uid": transaction_uid, "deadline": deadlines[row.id]}
                    note(writer, row, Kind.COMMITMENT_REQUESTED, **told)

    def commitment_refused(self, transaction_uid: str, status: int) -> None:
        """Note that a request was not accepted; it is made again at its deadline.

        The same refusal again leaves no event.
        """
        with self._writing() as writer:
            mine = Commitment.transaction_uid == transaction_uid
            earlier = aliased(Commitment)
            said_so = exists().where(
                earlier.delivery_id == Delivery.id,
                earlier.transaction_uid != transaction_uid,
                earlier.status == status,
            )
            asked = facts().join(Commitment, Commitment.delivery_id == Delivery.id).where(mine, ~said_so)
            for row in writer.execute(asked).all():
                note(writer, row, Kind.COMMITMENT_REFUSED, transaction_uid=transaction_uid, status=status)
            writer.execute(update(Commitment).where(mine).values(status=status))

    def commitment_reported(self, report: CommitmentReport) -> CommitmentOutcome:
        """Take over the destination's answer; an answer to an older request counts as well.

        What it does not hold becomes due again, after a pause that doubles with every try.
        """
        with self._writing() as writer:
            mine = Commitment.transaction_uid == report.transaction_uid
            asked = facts().join(Commitment, Commitment.delivery_id == Delivery.id).where(mine)
            rows = {row.sop_instance_uid: row for row in writer.execute(asked).all()}
            # Of what a report says both, or twice, the proof counts: it is there.
            committed = [rows[sop] for sop in dict.fromkeys(report.committed) if sop in rows]
            failed = [
                (rows[sop], reason)
                for sop, reason in dict(report.failed).items()
                if sop in rows and sop not in report.committed
            ]
            answered = [row.id for row in committed] + [row.id for row, _ in failed]
            if answered:
                reported = update(Commitment).where(mine, Commitment.delivery_id.in_(answered))
                writer.execute(reported.values(reported_at=writer.now))
            proven = [row for row in committed if _commit(writer, row, report.transaction_uid)]
            missing = [
                row for row, reason in failed if _not_held(writer, row, reason, report.transaction_uid)
            ]
            return CommitmentOutcome(
                known=bool(rows),
                committed=len(proven),
                failed=len(missing),
                proven=tuple(proof_of(row, writer.now) for row in proven),
                missing=tuple(
                    (row.destination, row.study_instance_uid, row.sop_instance_uid) for row in missing
                ),
            )


def _wait(patience: timedelta, asked: int) -> timedelta:
    return max(patience, min(patience * 2.0 ** min(asked, 16), _LONGEST_WAIT))


def _asked_before(writer: Transaction, delivery_ids: Sequence[int]) -> Counter[int]:
    """How often the destination was asked for each object since it stored it."""
    asked = (
        select(Commitment.delivery_id)
        .join(Delivery, Commitment.delivery_id == Delivery.id)
        .where(Delivery.id.in_(delivery_ids), Commitment.requested_at >= Delivery.stored_at)
    )
    return Counter(writer.execute(asked).scalars())


def _forgotten(writer: Transaction, delivery_ids: Sequence[int]) -> dict[int, int]:
    """Of each object that has one, the oldest request whose answer is not waited for any more: its row is
    used again, for a destination that never answers is asked every hour, for ever."""
    unanswered = (Commitment.delivery_id.in_(delivery_ids), Commitment.reported_at.is_(None))
    old = select(Commitment.delivery_id, func.min(Commitment.id))
    old = old.where(*unanswered, Commitment.deadline < writer.now - _FORGOTTEN)
    return {row[0]: row[1] for row in writer.execute(old.group_by(Commitment.delivery_id)).all()}


def _commit(writer: Transaction, row: Row[Any], transaction_uid: str) -> bool:
    if row.state in (DeliveryState.COMMITTED, DeliveryState.VERIFIED):
        return False
    change = {"state": DeliveryState.COMMITTED, "proven_at": writer.now}
    move(writer, row, Kind.COMMITTED, change, transaction_uid=transaction_uid)
    return True


def _not_held(writer: Transaction, row: Row[Any], reason: int, transaction_uid: str) -> bool:
    if row.state is not DeliveryState.STORED:
        return False
    pause = min(timedelta(seconds=2.0 ** min(row.attempts, 32)), _RESEND_CAP)
    told = {"transaction_uid": transaction_uid, "reason": reason}
    missed(writer, row, Kind.COMMITMENT_FAILED, writer.now + pause, **told)
    return True
