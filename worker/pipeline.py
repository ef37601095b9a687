"""The order of the stations: register -> claim -> score -> encode -> keep -> record.

Stations return values and do not call each other; with `worker.scorer` this is the only file that
knows the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from structlog.contextvars import bound_contextvars

from dicom_node import tracing
from dicom_node.errors import Permanent, Reason, Retryable
from dicom_node.failpoints import reach
from dicom_node.logs import get_logger
from dicom_node.spool import Spool, SpooledInstance
from worker import metrics
from worker.findings import KeptOutput, Output, StudyFinding
from worker.heartbeat import heartbeat_uids
from worker.keep import keep
from worker.lease import Lease
from worker.ledger import Claim, Ledger, Recorded
from worker.scorer import Scorer, reportable
from worker.settings import Settings
from worker.shadow import Shadow
from worker.stations import station

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
        on_recorded: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._ledger = ledger
        self._scorer = scorer
        self._worker = worker
        self._heartbeats = heartbeat_uids(settings)
        self._shadow = shadow
        self._on_recorded = on_recorded
        self._destinations = tuple(destination.name for destination in settings.destinations)

    def score_study(self, study_instance_uid: str) -> None:
        """`score_now`, with the study in every line that is logged and every span that is told."""
        with bound_contextvars(study=study_instance_uid):
            self.score_now(study_instance_uid)

    def score_now(self, study_instance_uid: str) -> None:
        """Register what the spool holds of the study, claim its newest job and see it through.

        Running twice, or for a study that has nothing to do, is harmless.

        Raises:
            Retryable: the database or the spool is away; the reconciler rings again.
        """
        with station("register"):
            registered = self._ledger.register(study_instance_uid, self._spooled(study_instance_uid))
        if registered.conflicting:
            metrics.count_abstention("quarantined", Reason.CONFLICTING_CONTENT, registered.conflicting)
        reach("pipeline.after_register")
        worker = self._settings.worker
        lease = timedelta(seconds=worker.lease)
        with station("claim"):
            claim = self._ledger.claim(
                study_instance_uid, worker=self._worker, lease=lease, maximum_attempts=worker.maximum_attempts
            )
        if claim is None:
            return
        reach("pipeline.after_claim")
        waited = (datetime.now(UTC) - max(one.received_at for one in claim.instances)).total_seconds()
        tracing.span("wait", study_instance_uid, seconds=max(waited, 0.0))
        log.info("study_claimed", study=study_instance_uid, generation=claim.generation, fence=claim.fence)
        longest = timedelta(seconds=worker.maximum_seconds)
        with metrics.CLAIMS.track_inprogress(), Lease(self._ledger, claim, lease, maximum=longest):
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
            metrics.OUTCOMES.labels("quarantined").inc()
            metrics.count_abstention("quarantined", error.reason, len(claim.instances))
            log.warning("study_quarantined", study=claim.study_instance_uid, reason=error.reason)
        except Retryable as error:
            self._ledger.release(claim, retry_in=pause_after(claim.releases), sentence=str(error))
            metrics.OUTCOMES.labels("released").inc()
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
            with station("record"):
                outcome = self._ledger.finish_without_result(claim, finding)
            self._count(claim, finding, "no_result" if outcome is Recorded.RECORDED else outcome.value)
            return
        outputs = self._scorer.encode(finding)
        with station("keep"):
            kept = self._keep_all(claim, outputs)
        destinations = self._destinations
        if self._is_heartbeat(claim) and not self._settings.heartbeat.deliver:
            # It has shown that they can be made and kept; nobody is to get them.
            self._drop(kept)
            kept, destinations = [], ()
        with station("record"):
            recorded = self._record(claim, finding, kept, destinations)
        self._count(claim, finding, recorded.value)
        log.info(
            "study_scored",
            study=claim.study_instance_uid,
            generation=claim.generation,
            decision=finding.decision or "not_analysed",
            images=len(finding.scores),
            outcome=recorded,
        )
        if self._shadow is not None and recorded is Recorded.RECORDED and not self._is_heartbeat(claim):
            self._shadow.score(finding, self._ledger)

    def _count(self, claim: Claim, finding: StudyFinding, outcome: str) -> None:
        metrics.OUTCOMES.labels(outcome).inc()
        if self._is_heartbeat(claim):
            return
        if outcome in ("recorded", "no_result"):
            metrics.count_finding(finding)
            last = max(instance.received_at for instance in claim.instances)
            turnaround = max((datetime.now(UTC) - last).total_seconds(), 0.0)
            metrics.TURNAROUND_SECONDS.labels(claim.lane).observe(turnaround)
        if outcome == "recorded":
            metrics.DECISIONS.labels(finding.decision or "not_analysed").inc()

    def _is_heartbeat(self, claim: Claim) -> bool:
        images = (instance.sop_instance_uid for instance in claim.instances)
        return self._heartbeats.own(claim.study_instance_uid, images)

    def _record(
        self, claim: Claim, finding: StudyFinding, kept: Sequence[KeptOutput], destinations: Sequence[str]
    ) -> Recorded:
        try:
            recorded = self._ledger.record(claim, finding, kept, destinations)
        except Retryable:
            # The connection may have broken after the commit: the sweep of the outbox knows later.
            raise
        except Exception:
            self._drop(kept)
            raise
        reach("pipeline.after_record")
        if recorded is Recorded.RECORDED:
            self._on_recorded()
        else:
            self._drop(kept)
        return recorded

    def _keep_all(self, claim: Claim, outputs: Sequence[Output]) -> list[KeptOutput]:
        kept: list[KeptOutput] = []
        try:
            for output in outputs:
                kept.append(keep(self._spool, claim.study_instance_uid, output))
        except Retryable:
            # The next try makes other bytes: on a full disk these would be in the way.
            self._drop(kept)
            raise
        return kept

    def _drop(self, kept: Sequence[KeptOutput]) -> None:
        # The path holds the digest of the bytes: what another worker recorded lies under another name.
        for output in kept:
            self._spool.outbox.drop(output.path)
