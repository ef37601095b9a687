"""Everything between spool and outputs: decode -> preprocess -> infer -> explain -> encode."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Self

import numpy as np

from dicom_node.errors import ConfigurationError, Permanent, Reason, Retryable
from dicom_node.failpoints import reach
from dicom_node.spool import SpooledInstance
from worker import metrics, preprocess
from worker.engines import DeviceLost
from worker.engines.select import open_engine
from worker.findings import ImageScore, ModelIdentity, Output, Reading, Rejected, StudyFinding
from worker.guard import Decoders
from worker.model_store import open_bundle_in_use
from worker.parity import replay_golden
from worker.report.identity import same_patient, study_of
from worker.report.secondary_capture import encode_sc
from worker.report.structured_report import encode_sr
from worker.settings import Settings
from worker.stations import station


class Scorer:
    """Bundle, engine and decoders of one worker process."""

    def __init__(self, settings: Settings) -> None:
        """Open the bundle and the engine, which replays the golden cases before it serves.

        Raises:
            ConfigurationError: the bundle or the engine is not fit to serve; the sentence says why.
        """
        self._settings = settings
        self.bundle = open_bundle_in_use(settings.worker)
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
        metrics.know_model(self.bundle, self.model)

    def find(
        self,
        study_instance_uid: str,
        generation: int,
        instances: Sequence[SpooledInstance],
        *,
        patient: bool = True,
    ) -> StudyFinding:
        """Read, judge and score the images of one study.

        Args:
            study_instance_uid: of the study.
            generation: which set of its images this is.
            instances: the images.
            patient: whether to wait for files that the disk does not give back; else they are rejected.

        Raises:
            Permanent: the images name different patients, or the network returned no number.
            Retryable: a file cannot be read now.
        """
        analysed_at = datetime.now(UTC)
        read = self._decoders.read if patient else self._read_or_reject
        with station("decode"):
            found = (_of_study(study_instance_uid, one) for one in self._readers.map(read, instances))
            readings, rejected = _parted(found)
        reach("scorer.after_decode")
        if not same_patient(reading.source for reading in reportable(readings)):
            raise Permanent(
                Reason.IDENTITY_CONFLICT, "The images of this study name different patients: nothing is sent."
            )
        scores = self._infer([reading for reading in readings if reading.film is not None])
        set_aside = tuple(reading for reading in readings if reading.film is None)
        digests = {instance.sop_instance_uid: instance.sha256 for instance in instances}
        basis = [score.reading for score in scores] or reportable(set_aside)
        # What was analysed under one policy and set aside under another makes two results, and so does a
        # film that came later and cannot be read: the report of before does not say that it lacks one.
        told = [
            *((one.eligibility.reason or "analysed", one.sop_instance_uid) for one in basis),
            *((one.reason, one.sop_instance_uid) for one in rejected),
        ]
        return StudyFinding(
            study_instance_uid=study_instance_uid,
            generation=generation,
            input_set_hash=_input_set_hash((what, uid, digests[uid]) for what, uid in told),
            analysed_at=analysed_at,
            model=self.model,
            scores=scores,
            set_aside=set_aside,
            quarantined=rejected,
        )

    def _read_or_reject(self, instance: SpooledInstance) -> Reading | Rejected:
        try:
            return self._decoders.read(instance)
        except Retryable:
            return Rejected(
                sop_instance_uid=instance.sop_instance_uid,
                reason=Reason.FILE_UNREADABLE,
                sentence="The disk does not give the spooled file back: mend it and run `covariance retry`.",
            )

    def _infer(self, readings: Sequence[Reading]) -> tuple[ImageScore, ...]:
        films = [reading.film for reading in readings if reading.film is not None]
        if not films:
            return ()
        _reach_device()
        with station("infer"):
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
        if not all(math.isfinite(score.logit) and np.isfinite(score.cam_hw).all() for score in scores):
            self._doubt_engine()
            raise Permanent(Reason.NOT_A_NUMBER, "The network returned no number for an image of this study.")
        # The decisive image first; the UID breaks ties so that the order never depends on arrival.
        return tuple(sorted(scores, key=lambda score: (-score.logit, score.reading.sop_instance_uid)))

    def _doubt_engine(self) -> None:
        """No number came out: is it the film, or has the engine gone bad under way?

        Raises:
            DeviceLost: the golden cases do not come out right any more.
        """
        try:
            replay_golden(self.bundle, self.engine)
        except ConfigurationError:
            raise DeviceLost(
                "The engine does not agree with the model any more: this process ends, and its studies go to "
                "another."
            ) from None

    def encode(self, finding: StudyFinding) -> tuple[Output, ...]:
        """Make the objects to write back: a heatmap per analysed image and one SR; none by policy.

        Raises:
            Permanent: no valid object can be made of this study's identifiers.
        """
        report = self._settings.report
        with station("explain"):
            heatmaps = tuple(encode_sc(finding, score, report) for score in finding.scores)
        if finding.scores or (report.not_analysed and reportable(finding.set_aside)):
            with station("encode"):
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


def _reach_device() -> None:
    """Where a test makes the device fail: no test can break a real one."""
    try:
        reach("scorer.before_infer")
    except OSError:
        raise DeviceLost(
            "The device failed at a failpoint: this process ends, and its studies go to another."
        ) from None


def _of_study(study_instance_uid: str, found: Reading | Rejected) -> Reading | Rejected:
    # A crafted file can name one study to the node and another to pydicom: it must not choose a chart.
    if isinstance(found, Rejected) or study_of(found.source) == study_instance_uid:
        return found
    return Rejected(
        sop_instance_uid=found.sop_instance_uid,
        reason=Reason.UNREADABLE,
        sentence="The data set names another study than the one it was received for.",
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


def reportable(set_aside: Sequence[Reading]) -> list[Reading]:
    """What a "not analysed" report is about: never our own outputs, or every echo would breed a report."""
    return [reading for reading in set_aside if reading.eligibility.reason is not Reason.OWN_OUTPUT]


def _input_set_hash(images: Iterable[tuple[str, ...]]) -> str:
    return hashlib.sha256("\n".join(" ".join(image) for image in sorted(images)).encode()).hexdigest()
