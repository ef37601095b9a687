"""What a second bundle would have said, film by film."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from sqlalchemy import insert, select

from worker.ledger.models import ShadowScore as Row
from worker.ledger.store import Store


@dataclass(frozen=True, kw_only=True)
class ShadowScore:
    """One film, scored by the bundle in use and by the shadow."""

    study_instance_uid: str
    generation: int
    sop_instance_uid: str
    model_sha256: str
    positive: bool
    probability: float
    shadow_sha256: str
    """`bundle_sha256` of the shadow."""
    shadow_positive: bool
    shadow_probability: float


class Shadows(Store):
    """All raise Retryable when the database is away or busy. No events: it is no result."""

    def note_shadow(self, scores: Sequence[ShadowScore]) -> None:
        """Note the scores; those that are noted already stay as they are."""
        if not scores:
            return
        with self._writing() as writer:
            key = (Row.generation, Row.sop_instance_uid, Row.shadow_sha256)
            known = {
                tuple(row)
                for row in writer.execute(
                    select(*key).where(Row.study_instance_uid == scores[0].study_instance_uid)
                )
            }
            fresh = [
                asdict(one) | {"recorded_at": writer.now}
                for one in scores
                if (one.generation, one.sop_instance_uid, one.shadow_sha256) not in known
            ]
            if fresh:
                writer.execute(insert(Row), fresh)

    def shadow_scores(self, shadow: str = "") -> list[ShadowScore]:
        """All scores of the shadows whose digest begins so, oldest first."""
        columns = [getattr(Row, field.name) for field in fields(ShadowScore)]
        mine = select(*columns).where(Row.shadow_sha256.startswith(shadow, autoescape=True)).order_by(Row.id)
        with self._reading() as connection:
            return [ShadowScore(**row._mapping) for row in connection.execute(mine)]
