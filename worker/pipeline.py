"""The order of the stations: register -> claim -> score -> encode -> keep -> record.

Stations return values and do not call each other; with `worker.scorer` this is the only file that
knows the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from dicom_node.errors import Permanent, Reason, Retryable
from dicom_node.failpoints import reach
from dicom_node.logs import get_logger
from dicom_node.spool import Spool, SpooledInstance
from worker.findings import KeptOutput, Output, StudyFinding
from worker.lease import Lease
from worker.ledger import Claim, Ledger, Recorded
from worker.scorer import Scorer, reportable
from worker.settings import Settings
from worker.shadow import Shadow

log = get_logger("pipeline")

_LONGEST_PAUSE = timedelta(seconds=60)
_PATIENT_RELEASES = 8
"""Times that a study is given back, over four minutes, before a file that cannot be read is left out."""


def pause_after(releases: int) -> timedelta:
    """How long a job that was given back so many times before waits: doubled each time, up to a minute."""
    return min(timedelta(seconds=2.0 ** min(releases + 1, 16)), _LONGEST_PAUSE)


class Pipeline:
    """One study from the doorbell to the ledger."""

    def __init__(
        self,
        *,
        settings: Settings,
        spool: Spool,
        ledger: Ledger,
        scorer: Scorer,
        worker: str,
        shadow: Shadow | None = None,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._ledger = ledger
        self._scorer = scorer
        self._worker = worker
        self._shadow = shadow
        self._destinations = tuple(destination.name for destination in settings.destinations)

    def score_study(self, study_instance_uid: str) -> None:
        """Register what the spool holds of the study, claim its newest job and see it through.

        Running twice, or for a study that has nothing to do, is harmless.

        Raises:
            Retryable: the database or the spool is away; the reconciler rings again.
        """
        self._ledger.register(study_instance_uid, self._spooled(study_instance_uid))
        reach("pipeline.after_register")
        worker = self._settings.worker
        lease = timedelta(seconds=worker.lease)
        claim = self._ledger.claim(
            study_instance_uid, worker=self._worker, lease=lease, maximum_attempts=worker.maximum_attempts
        )
        if claim is None:
            return
        reach("pipeline.after_claim")
        with Lease(self._ledger, claim, lease, maximum=timedelta(seconds=worker.maximum_seconds)):
            self._see_through(claim)

    def score_again(self, study_instance_uid: str) -> bool:
        """Make a new generation of a study that rests and score it here; False when it does not rest.

        Raises:
            Retryable: the database, the spool or a file is away; the job waits for any worker.
        """
        lease = timedelta(seconds=self._settings.worker.lease)
        claim = self._ledger.claim_again(study_instance_uid, worker=self._worker, lease=lease)
        if claim is None:
            return False
        maximum = timedelta(seconds=self._settings.worker.maximum_seconds)
        with Lease(self._ledger, claim, lease, maximum=maximum):
            self._see_through(claim)
        return True

    def _spooled(self, study_instance_uid: str) -> list[SpooledInstance]:
        try:
            return self._spool.instances(study_instance_uid)
        except OSError as error:
            raise Retryable(f"The spool cannot be read: {type(error).__name__} {error.errno}.") from None

    def _see_through(self, claim: Claim) -> None:
        try:
            self._score_and_record(claim)
        except Permanent as error:
            self._ledger.quarantine(claim, error.reason, str(error), model=self._scorer.model)
            log.warning("study_quarantined", study=claim.study_instance_uid, reason=error.reason)
        except Retryable as error:
            self._ledger.release(claim, retry_in=pause_after(claim.releases), sentence=str(error))
            raise

    def _score_and_record(self, claim: Claim) -> None:
        if claim.purged:
            # Scored from the rest alone, a study could lose the film that made it positive.
            raise Permanent(
                Reason.FILE_PURGED,
                f"Of {len(claim.instances)} images {claim.purged} had been purged when another came: the "
                "result in force stands. Send the whole study again to have it scored anew.",
            )
        finding = self._scorer.find(
            claim.study_instance_uid,
            claim.generation,
            claim.instances,
            patient=claim.releases < _PATIENT_RELEASES,
        )
        reach("pipeline.after_infer")
        if not finding.scores and not reportable(finding.set_aside):
            self._ledger.finish_without_result(claim, finding)
            return
        kept = self._keep_all(claim, self._scorer.encode(finding))
        recorded = self._record(claim, finding, kept)
        log.info(
            "study_scored",
            study=claim.study_instance_uid,
            generation=claim.generation,
            decision=finding.decision or "not_analysed",
            images=len(finding.scores),
            outcome=recorded,
        )
        if self._shadow is not None and recorded is Recorded.RECORDED:
            self._shadow.score(finding, self._ledger)

    def _record(self, claim: Claim, finding: StudyFinding, kept: Sequence[KeptOutput]) -> Recorded:
        try:
            recorded = self._ledger.record(claim, finding, kept, self._destinations)
        except Retryable:
            # The connection may have broken after the commit: the sweep of the outbox knows later.
            raise
        except Exception:
            self._drop(kept)
            raise
        reach("pipeline.after_record")
        if recorded is not Recorded.RECORDED:
            self._drop(kept)
        return recorded

    def _keep_all(self, claim: Claim, outputs: Sequence[Output]) -> list[KeptOutput]:
        kept: list[KeptOutput] = []
        try:
            for output in outputs:
                kept.append(self._keep(claim, output))
        except Retryable:
            # The next try makes other bytes: on a full disk these would be in the way.
            self._drop(kept)
            raise
        return kept

    def _keep(self, claim: Claim, output: Output) -> KeptOutput:
        try:
            path = self._spool.outbox.keep(
                claim.study_instance_uid, output.sop_instance_uid, output.content, sha256=output.sha256
            )
        except OSError as error:
            raise Retryable(f"The outbox cannot be written: {type(error).__name__} {error.errno}.") from None
        return KeptOutput(
            role=output.role,
            sop_class_uid=output.sop_class_uid,
            sop_instance_uid=output.sop_instance_uid,
            series_instance_uid=output.series_instance_uid,
            sha256=output.sha256,
            path=path,
        )

    def _drop(self, kept: Sequence[KeptOutput]) -> None:
        # The path holds the digest of the bytes: what another worker recorded lies under another name.
        for output in kept:
            self._spool.outbox.drop(output.path)
