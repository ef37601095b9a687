"""Looks at the ledger again and again: when each object had come to its end, its results proven."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from sqlalchemy import create_engine, select, union
from sqlalchemy.exc import SQLAlchemyError

from tests.chaos.oracle import Sent
from worker.ledger import DeliveryState, Disposition, JobState
from worker.ledger.models import Delivery, Image, Job, Output, Result
from worker.settings import Settings

_PAUSE_SECONDS = 0.25


class Watch:
    """Notes by the monotonic clock when an object was seen to be done."""

    def __init__(self, settings: Settings) -> None:
        self._spool: Path = settings.spool.path
        self._engine = create_engine(settings.database.url, connect_args=_impatient(settings.database.url))
        self._stop = threading.Event()
        self.done: dict[Sent, float] = {}
        self.undropped = 0
        """Outputs that are proven, and whose bytes are still kept."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def is_at_rest(self, sent: dict[Sent, float]) -> bool:
        """Whether all that was sent is done, and nothing of it lies about."""
        reports = any(self._spool.glob("reports/*.json"))
        return not (sent.keys() - self.done.keys()) and not self.undropped and not reports

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE_SECONDS):
            try:
                self._look()
            except SQLAlchemyError:
                continue  # the database is away, which is what others test

    def _look(self) -> None:
        content = (Image.study_instance_uid, Image.sop_instance_uid, Image.sha256)
        with self._engine.connect() as connection:
            images = connection.execute(select(*content)).all()
            busy = set(connection.execute(_busy()).scalars())
            kept = select(Output.id).join(Delivery, Delivery.output_id == Output.id)
            proven = Delivery.state.in_((DeliveryState.COMMITTED, DeliveryState.VERIFIED))
            undropped = connection.execute(kept.where(Output.dropped_at.is_(None), proven)).all()
        now = time.monotonic()
        for study, sop, sha256 in images:
            one = Sent(study_instance_uid=study, sop_instance_uid=sop, sha256=sha256)
            if study in busy:
                continue
            self.done.setdefault(one, now)
        self.undropped = len(undropped)


def _busy():  # type: ignore[no-untyped-def]
    """Studies of which something is still to be done."""
    waiting = Delivery.state.in_((DeliveryState.DUE, DeliveryState.STORED))
    return union(
        select(Image.study_instance_uid).where(Image.disposition == Disposition.PENDING),
        select(Job.study_instance_uid).where(Job.state.in_((JobState.READY, JobState.CLAIMED))),
        select(Result.study_instance_uid)
        .join(Output, Output.result_id == Result.id)
        .join(Delivery, Delivery.output_id == Output.id)
        .where(waiting),
    )


def _impatient(url: str) -> dict[str, int]:
    return {"connect_timeout": 2} if url.startswith("postgresql") else {}
