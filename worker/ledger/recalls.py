"""Recalls: a model is withdrawn, and every result of it with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from worker.findings import KeptOutput, ModelIdentity
from worker.ledger.audit import Kind
from worker.ledger.models import Delivery, DeliveryState, Event, Output, RecalledModel, Result
from worker.ledger.results import add_outputs, told_of
from worker.ledger.store import Store

_PAGE = 500
_UNSENT = (DeliveryState.DUE, DeliveryState.PARKED, DeliveryState.FAILED)


@dataclass(frozen=True, kw_only=True)
class SentObject:
    """An object of a result that may be at a destination."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    destinations: tuple[str, ...]
    """Those that may hold it: it was sent there, or may be under way."""


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """A result of a certain model."""

    result_id: int
    study_instance_uid: str
    generation: int
    input_set_hash: str
    decision: str | None
    probability: float | None
    recorded_at: datetime
    superseded_at: datetime | None
    recalled_at: datetime | None
    objects: tuple[SentObject, ...]

    @property
    def destinations(self) -> tuple[str, ...]:
        """Every destination that may hold something of it."""
        return tuple(dict.fromkeys(name for one in self.objects for name in one.destinations))


class Recalls(Store):
    """All raise Retryable when the database is away or busy."""

    def models(self) -> dict[str, int]:
        """How many results each model has, by its SHA-256."""
        counted = select(Result.model_sha256, func.count()).group_by(Result.model_sha256)
        with self._reading() as connection:
            return dict(connection.execute(counted.order_by(Result.model_sha256)).all())

    def recalled_models(self) -> dict[str, str]:
        """Every model that was recalled, and why."""
        with self._reading() as connection:
            rows = connection.execute(select(RecalledModel.model_sha256, RecalledModel.why))
            return dict(rows.all())

    def results_of(self, model_sha256: str) -> Iterator[ModelResult]:
        """Every result of a model, oldest first, recalled or not; read a page at a time."""
        last = 0
        while page := self._page(model_sha256, last):
            yield from page
            last = page[-1].result_id

    def _page(self, model_sha256: str, last: int) -> list[ModelResult]:
        mine = (Result.model_sha256 == model_sha256, Result.id > last)
        with self._reading() as connection:
            wanted = select(Result.__table__).where(*mine).order_by(Result.id).limit(_PAGE)
            results = connection.execute(wanted).all()
            sent = (
                select(Output.__table__, Delivery.destination)
                .join(Delivery, Delivery.output_id == Output.id)
                .where(Output.result_id.in_([row.id for row in results]))
                .order_by(Output.id, Delivery.id)
            )
            objects: dict[int, list[Row[Any]]] = {}
            for row in connection.execute(sent):
                objects.setdefault(row.result_id, []).append(row)
        return [_result(row, objects.get(row.id, [])) for row in results]

    def model_of(self, result: ModelResult) -> ModelIdentity:
        """The whole identity of the model, as the audit trail has it.

        Raises:
            LookupError: the trail has no event of the result.
        """
        mine = (Event.study_instance_uid == result.study_instance_uid, Event.kind == Kind.RECORDED.value)
        with self._reading() as connection:
            for body in connection.execute(select(Event.body).where(*mine)).scalars():
                told = json.loads(body)
                if told["generation"] == result.generation:
                    return ModelIdentity(**told["model"])
        raise LookupError("no event of this result")

    def recall_model(self, model_sha256: str, why: str) -> bool:
        """Withdraw a model: from now on nothing of it is recorded. False when it is withdrawn already."""
        with self._writing() as writer:
            known = select(RecalledModel.model_sha256).where(RecalledModel.model_sha256 == model_sha256)
            if writer.execute(known).one_or_none() is not None:
                return False
            row = {"model_sha256": model_sha256, "recalled_at": writer.now, "why": why}
            writer.execute(insert(RecalledModel), [row])
            writer.note(Kind.RECALLED, None, model_sha256=model_sha256, sentence=why)
            return True

    def note_activation(
        self, *, bundle_sha256: str, model_sha256: str, name: str, version: str, before: str | None
    ) -> None:
        """Put on record that a bundle is in use from now on, and which one was before (None: the default)."""
        with self._writing() as writer:
            writer.note(
                Kind.MODEL_ACTIVATED,
                None,
                bundle_sha256=bundle_sha256,
                model_sha256=model_sha256,
                model={"name": name, "version": version},
                before=before,
            )

    def recall(self, result: ModelResult, notices: Mapping[str, KeptOutput]) -> bool:
        """Mark a result as recalled, and have the notices of it sent: destination -> notice.

        What of it is not sent yet is not sent any more. False when it is recalled already: the notices
        are then not recorded.
        """
        with self._writing() as writer:
            marked = (
                update(Result)
                .where(Result.id == result.result_id, Result.recalled_at.is_(None))
                .values(recalled_at=writer.now, superseded_at=func.coalesce(Result.superseded_at, writer.now))
            )
            if writer.execute(marked.returning(Result.id)).one_or_none() is None:
                return False
            outputs = select(Output.id).where(Output.result_id == result.result_id)
            cancelled = (
                update(Delivery)
                .where(Delivery.output_id.in_(outputs), Delivery.state.in_(_UNSENT))
                .values(state=DeliveryState.CANCELLED)
            )
            writer.execute(cancelled)
            for notice in dict.fromkeys(notices.values()):
                to = [name for name, one in notices.items() if one == notice]
                add_outputs(writer, result.result_id, [notice], to)
            told: dict[str, Any] = {"outputs": [told_of(one) for one in dict.fromkeys(notices.values())]}
            told |= {"generation": result.generation, "decision": result.decision}
            told |= {"destinations": sorted(notices), "objects": _uids(result.objects)}
            writer.note(Kind.RECALLED, result.study_instance_uid, **told)
            return True


def _result(row: Row[Any], rows: Sequence[Row[Any]]) -> ModelResult:
    objects = []
    for uid in dict.fromkeys(one.sop_instance_uid for one in rows):
        mine = [one for one in rows if one.sop_instance_uid == uid]
        # All of them, whatever the state: what is due may be on its way, and what was cancelled may have come
        # in the moment before. A notice of an object that was never there does no harm.
        to = [one.destination for one in mine]
        objects.append(
            SentObject(
                sop_class_uid=mine[0].sop_class_uid,
                sop_instance_uid=uid,
                series_instance_uid=mine[0].series_instance_uid,
                destinations=tuple(to),
            )
        )
    return ModelResult(
        result_id=row.id,
        study_instance_uid=row.study_instance_uid,
        generation=row.generation,
        input_set_hash=row.input_set_hash,
        decision=row.decision,
        probability=row.probability,
        recorded_at=row.recorded_at,
        superseded_at=row.superseded_at,
        recalled_at=row.recalled_at,
        objects=tuple(objects),
    )


def _uids(objects: Sequence[SentObject]) -> list[str]:
    return [one.sop_instance_uid for one in objects]
