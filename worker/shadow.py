"""A second bundle scores live traffic beside the first; nothing of it is written back.

It comes after the result is recorded, on the films that are decoded already. What fails here is logged and
forgotten: the shadow never costs a study.
"""

from __future__ import annotations

from typing import Self

from dicom_node.errors import CovarianceError
from dicom_node.logs import get_logger
from worker import preprocess
from worker.bundle import Bundle
from worker.engines.select import open_engine
from worker.findings import StudyFinding
from worker.ledger import Ledger, ShadowScore
from worker.settings import WorkerSection

log = get_logger("shadow")


class Shadow:
    """The second bundle and its engine, behind the same parity gate as the first."""

    def __init__(self, worker: WorkerSection) -> None:
        """Open it. Raises `ConfigurationError` where it is not set or not fit."""
        self.bundle = Bundle(worker.shadow_bundle or worker.bundle)
        if self.bundle.int8_path is None:
            worker = worker.model_copy(update={"engine_precision": "native"})
        self._engine = open_engine(self.bundle, worker, use="shadow")

    def score(self, finding: StudyFinding, ledger: Ledger) -> None:
        """Score the films of a finding once more, and note both scores."""
        films = [(one, one.reading.film) for one in finding.scores if one.reading.film is not None]
        if not films:
            return
        try:
            found = self._engine.infer(preprocess.to_batch([film.input_HW for _, film in films]))
            manifest = self.bundle.manifest
            threshold = manifest.operating_point.probability
            scores = []
            for (score, _), logit in zip(films, found.logits_B, strict=True):
                probability = self.bundle.probability(float(logit))
                scores.append(
                    ShadowScore(
                        study_instance_uid=finding.study_instance_uid,
                        generation=finding.generation,
                        sop_instance_uid=score.reading.sop_instance_uid,
                        model_sha256=finding.model.sha256,
                        positive=score.probability >= finding.model.threshold,
                        probability=score.probability,
                        shadow_sha256=self.bundle.sha256,
                        shadow_positive=probability >= threshold,
                        shadow_probability=probability,
                    )
                )
            ledger.note_shadow(scores)
        except CovarianceError as error:
            log.warning("shadow_failed", study=finding.study_instance_uid, why=str(error))

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
