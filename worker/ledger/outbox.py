"""Which bytes the outbox may let go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import exists, select, update

from worker.ledger.audit import Kind
from worker.ledger.models import Delivery, DeliveryState, Output, Result
from worker.ledger.store import Store

_CHUNK = 1000
"""Values in one IN list; databases bound them."""
_UNPROVEN = (DeliveryState.DUE, DeliveryState.STORED, DeliveryState.FAILED, DeliveryState.PARKED)
"""States in which the exact bytes may be needed once more."""


@dataclass(frozen=True, kw_only=True)
class DroppableOutput:
    """An output that every destination has answered for."""

    output_id: int
    sop_instance_uid: str
    path: Path


class Outbox(Store):
    """The exact bytes of an output are kept until no destination can ask for them again."""

    _recorded: frozenset[str] = frozenset()
    """Names that the last look found recorded: rows of outputs stay for ever, so they still are."""

    def outputs_to_drop(
        self, *, trusted: Collection[str] = (), limit: int = 1000, after: int = 0
    ) -> list[DroppableOutput]:
        """Outputs whose bytes nobody needs any more: proven, or cancelled, at every destination.

        At the `trusted` destinations stored is enough: they are not asked for proof. An output that goes
        nowhere stays. Those behind the output `after`: one that the disk does not let go keeps back no other.
        """
        mine = Delivery.output_id == Output.id
        settled = (Delivery.state == DeliveryState.STORED) & Delivery.destination.in_(trusted)
        needed = exists().where(mine, Delivery.state.in_(_UNPROVEN), ~settled)
        droppable = (
            select(Output.id, Output.sop_instance_uid, Output.path)
            .where(Output.id > after, Output.dropped_at.is_(None), exists().where(mine), ~needed)
            .order_by(Output.id)
            .limit(limit)
        )
        with self._reading() as connection:
            rows = connection.execute(droppable).all()
        return [
            DroppableOutput(
                output_id=row.id,
                sop_instance_uid=row.sop_instance_uid,
                path=self._files.locate(row.path),
            )
            for row in rows
        ]

    def unrecorded_outputs(self, paths: Iterable[Path]) -> list[Path]:
        """Those of the outbox's files (`<SOPInstanceUID>_<sha256>.dcm`) that no output names.

        By name, not by path: a spool may be mounted elsewhere than where it was when they were recorded.
        One that was found recorded is not asked for again while it is among the paths of every look.
        """
        found, recorded = list(paths), self._recorded
        waiting = [path for path in found if path.name not in recorded]
        unrecorded: list[Path] = []
        for start in range(0, len(waiting), _CHUNK):
            chunk = waiting[start : start + _CHUNK]
            uids = [path.name.partition("_")[0] for path in chunk]
            named = select(Output.sop_instance_uid, Output.sha256).where(Output.sop_instance_uid.in_(uids))
            with self._reading() as connection:
                known = {f"{row.sop_instance_uid}_{row.sha256}.dcm" for row in connection.execute(named)}
            unrecorded += [path for path in chunk if path.name not in known]
        self._recorded = frozenset(path.name for path in found) - {path.name for path in unrecorded}
        return unrecorded

    def outputs_dropped(self, sop_instance_uids: Sequence[str]) -> None:
        """Note that the bytes of these outputs are no longer kept; up to 1000 of them."""
        if not sop_instance_uids:
            return
        with self._writing() as writer:
            dropped = (
                update(Output)
                .where(Output.sop_instance_uid.in_(sop_instance_uids), Output.dropped_at.is_(None))
                .values(dropped_at=writer.now)
                .returning(Output.id)
            )
            told = (
                select(Result.study_instance_uid, Output.sop_instance_uid)
                .join_from(Output, Result, Output.result_id == Result.id)
                .where(Output.id.in_(writer.execute(dropped).scalars().all()))
                .order_by(Output.id)
            )
            for row in writer.execute(told).all():
                writer.note(
                    Kind.OUTPUT_DROPPED, row.study_instance_uid, sop_instance_uid=row.sop_instance_uid
                )
