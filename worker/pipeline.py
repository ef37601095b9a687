"""The order of the stations: claim -> decode -> preprocess -> infer -> explain -> encode -> record.

Stations return values and do not call each other; this file is the only one that knows the way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Self

from dicom_node.errors import Permanent, Reason, Retryable
from dicom_node.logs import get_logger
from dicom_node.spool import Spool, SpooledInstance
from worker import preprocess
from worker.bundle import Bundle
from worker.engines.select import open_engine
from worker.findings import (
    ImageScore,
    KeptOutput,
    ModelIdentity,
    Output,
    Reading,
    Rejected,
    StudyFinding,
)
from worker.guard import Decoders
from worker.lease import Lease
from worker.ledger import Claim, Ledger, Recorded
from worker.report.secondary_capture import encode_sc
from worker.report.structured_report import encode_sr
from worker.settings import Settings

log = get_logger("pipeline")


class Scorer:
    """Bundle, engine and decoders of one worker process: everything between spool and outputs."""

    def __init__(self, settings: Settings) -> None:
        """Open the bundle and the engine, which replays the golden cases before it serves.

        Raises:
            ConfigurationError: the bundle or the engine is not fit to serve; the sentence says why.
        """
        self._settings = settings
        self.bundle = Bundle(settings.worker.bundle)
        self.engine = open_engine(self.bundle, settings.worker)
        self._decoders = Decoders(settings)
        self._readers = ThreadPoolExecutor(settings.worker.decoders, "read")
        manifest = self.bundle.manifest
        self.model = ModelIdentity(
            name=manifest.name,
            version=manifest.version,
            sha256=manifest.model.sha256,
            recipe=manifest.recipe,
            engine=self.engine.name,
            precision=self.engine.precision,
            threshold=manifest.operating_point.probability,
            operating_point=manifest.operating_point.name,
            temperature=manifest.temperature,
        )

    def find(
        self, study_instance_uid: str, generation: int, instances: Sequence[SpooledInstance]
    ) -> StudyFinding:
        """Read, judge and score the images of one study.

        Raises:
            Permanent: the images name different patients, or the network returned no number.
        """
        analysed_at = datetime.now(UTC)
        readings, rejected = _parted(self._readers.map(self._decoders.read, instances))
        if len({reading.patient_digest for reading in readings}) > 1:
            raise Permanent(
                Reason.IDENTITY_CONFLICT, "The images of this study name different patients: nothing is sent."
            )
        scores = self._infer([reading for reading in readings if reading.film is not None])
        set_aside = tuple(reading for reading in readings if reading.film is None)
        digests = {instance.sop_instance_uid: instance.sha256 for instance in instances}
        basis = [score.reading for score in scores] or _reportable(set_aside)
        return StudyFinding(
            study_instance_uid=study_instance_uid,
            generation=generation,
            input_set_hash=_input_set_hash((r.sop_instance_uid, digests[r.sop_instance_uid]) for r in basis),
            analysed_at=analysed_at,
            model=self.model,
            scores=scores,
            set_aside=set_aside,
            quarantined=rejected,
        )

    def _infer(self, readings: Sequence[Reading]) -> tuple[ImageScore, ...]:
        films = [reading.film for reading in readings if reading.film is not None]
        if not films:
            return ()
        found = self.engine.infer(preprocess.to_batch([film.input_HW for film in films]))
        scores = [
            ImageScore(
                reading=reading,
                logit=float(logit),
                probability=self.bundle.probability(float(logit)),
                cam_hw=cam_hw,
            )
            for reading, logit, cam_hw in zip(readings, found.logits_B, found.cams_Bhw, strict=True)
        ]
        if not all(math.isfinite(score.logit) for score in scores):
            raise Permanent(Reason.NOT_A_NUMBER, "The network returned no number for an image of this study.")
        # The decisive image first; the UID breaks ties so that the order never depends on arrival.
        return tuple(sorted(scores, key=lambda score: (-score.logit, score.reading.sop_instance_uid)))

    def encode(self, finding: StudyFinding) -> tuple[Output, ...]:
        """Make the objects to write back: a heatmap per analysed image and one SR; none by policy.

        Raises:
            Permanent: no valid object can be made of this study's identifiers.
        """
        report = self._settings.report
        heatmaps = tuple(encode_sc(finding, score, report) for score in finding.scores)
        if finding.scores or (report.not_analysed and _reportable(finding.set_aside)):
            return (*heatmaps, encode_sr(finding, report, heatmaps))
        return ()

    def close(self) -> None:
        """End the decoder children and free the engine."""
        self._readers.shutdown()
        self._decoders.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Pipeline:
    """One study from the doorbell to the ledger."""

    def __init__(
        self, *, settings: Settings, spool: Spool, ledger: Ledger, scorer: Scorer, worker: str
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._ledger = ledger
        self._scorer = scorer
        self._worker = worker
        self._destinations = tuple(destination.name for destination in settings.destinations)

    def score_study(self, study_instance_uid: str) -> None:
        """Register what the spool holds of the study, claim its newest job and see it through.

        Running twice, or for a study that has nothing to do, is harmless.

        Raises:
            Retryable: the database or the spool is away; the reconciler rings again.
        """
        self._ledger.register(study_instance_uid, self._spool.instances(study_instance_uid))
        worker = self._settings.worker
        lease = timedelta(seconds=worker.lease)
        claim = self._ledger.claim(
            study_instance_uid, worker=self._worker, lease=lease, maximum_attempts=worker.maximum_attempts
        )
        if claim is None:
            return
        with Lease(self._ledger, claim, lease):
            self._see_through(claim)

    def _see_through(self, claim: Claim) -> None:
        try:
            finding = self._scorer.find(claim.study_instance_uid, claim.generation, claim.instances)
            if not finding.scores and not _reportable(finding.set_aside):
                self._ledger.finish_without_result(claim, finding)
                return
            kept = [self._keep(claim, output) for output in self._scorer.encode(finding)]
            recorded = self._ledger.record(claim, finding, kept, self._destinations)
        except Permanent as error:
            self._ledger.quarantine(claim, error.reason, str(error))
            log.warning("study_quarantined", study=claim.study_instance_uid, reason=error.reason)
            return
        except Retryable as error:
            pause = timedelta(seconds=2.0**claim.attempt)
            self._ledger.release(claim, retry_in=pause, sentence=str(error))
            raise
        if recorded is not Recorded.RECORDED:
            log.info("result_not_needed", study=claim.study_instance_uid, outcome=recorded)
            return
        log.info(
            "study_scored",
            study=claim.study_instance_uid,
            generation=claim.generation,
            decision=finding.decision or "not_analysed",
            images=len(finding.scores),
        )

    def _keep(self, claim: Claim, output: Output) -> KeptOutput:
        path = self._spool.keep_output(claim.study_instance_uid, output.sop_instance_uid, output.content)
        return KeptOutput(
            role=output.role,
            sop_class_uid=output.sop_class_uid,
            sop_instance_uid=output.sop_instance_uid,
            series_instance_uid=output.series_instance_uid,
            sha256=output.sha256,
            path=path,
        )


def _parted(found: Iterable[Reading | Rejected]) -> tuple[list[Reading], tuple[Rejected, ...]]:
    readings: list[Reading] = []
    rejected: list[Rejected] = []
    for one in found:
        if isinstance(one, Reading):
            readings.append(one)
        else:
            rejected.append(one)
    return readings, tuple(rejected)


def _reportable(set_aside: Sequence[Reading]) -> list[Reading]:
    """What a "not analysed" report is about: never our own outputs, or every echo would breed a report."""
    return [reading for reading in set_aside if reading.eligibility.reason is not Reason.OWN_OUTPUT]


def _input_set_hash(images: Iterable[tuple[str, str]]) -> str:
    return hashlib.sha256("\n".join(" ".join(image) for image in sorted(images)).encode()).hexdigest()
