"""A model is withdrawn: every result of it is marked, and every destination that may hold one is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dicom_node.logs import get_logger
from dicom_node.spool import Spool
from worker.findings import KeptOutput, Reading
from worker.guard import Decoders
from worker.keep import keep
from worker.ledger import Ledger, ModelResult
from worker.report.identity import study_of
from worker.report.withdrawal import Why, Withdrawn, encode_rejection, encode_withdrawal
from worker.settings import Settings

log = get_logger("recall")


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What became of one result."""

    result: ModelResult
    told: tuple[str, ...]
    """Destinations that are sent a notice."""
    by_hand: tuple[str, ...]
    """Destinations that hold objects and cannot be told: no film of the study is left to take its
    identifiers from."""


class Recaller:
    """Recalls the results of one model. It may be run again: what is recalled is passed over."""

    def __init__(self, settings: Settings, ledger: Ledger, why: Why) -> None:
        self._settings = settings
        self._ledger = ledger
        self._why = why
        self._spool = Spool(settings.spool.path)
        self._notes = {one.name: one.rejection_notes for one in settings.destinations}

    def recall(self, results: Iterable[ModelResult], report: Callable[[Recalled], None]) -> None:
        """Mark every result that is not recalled yet, and have its notices sent by the deliverer.

        Raises:
            Retryable: database, spool or outbox is away; what was not reached waits for the next run.
        """
        with Decoders(self._settings) as decoders:
            for result in results:
                if result.recalled_at is None:
                    report(self._recall(result, decoders))

    def _recall(self, result: ModelResult, decoders: Decoders) -> Recalled:
        wanted = [name for name in result.destinations if name in self._notes]
        source = self._source(result.study_instance_uid, decoders) if wanted else None
        notices: dict[str, KeptOutput] = {}
        if source is not None:
            notices = self._notices(result, source, wanted)
        if not self._ledger.recall(result, notices):
            log.info("recalled_by_another", study=result.study_instance_uid)
        by_hand = tuple(name for name in result.destinations if name not in notices)
        return Recalled(result=result, told=tuple(notices), by_hand=by_hand)

    def _source(self, study: str, decoders: Decoders) -> bytes | None:
        """Identifiers of the study, from any film of it that is still there."""
        for instance in self._spool.instances(study):
            found = decoders.read(instance)
            if isinstance(found, Reading) and study_of(found.source) == study:
                return found.source
        return None

    def _notices(self, result: ModelResult, source: bytes, names: Sequence[str]) -> dict[str, KeptOutput]:
        now, model = datetime.now(UTC), self._ledger.model_of(result)
        report, kept = self._settings.report, dict[bool, KeptOutput]()
        withdrawn = Withdrawn(
            study_instance_uid=result.study_instance_uid,
            generation=result.generation,
            input_set_hash=result.input_set_hash,
            model=model,
            withdrawn_at=now,
            objects=result.objects,
        )
        for takes_notes in {self._notes[name] for name in names}:
            made = (
                encode_rejection(withdrawn, source, report, self._why)
                if takes_notes
                else encode_withdrawal(withdrawn, source, report)
            )
            kept[takes_notes] = keep(self._spool, result.study_instance_uid, made)
        return {name: kept[self._notes[name]] for name in names}
