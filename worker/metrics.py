"""What worker and deliverer count, for Prometheus. What the ledger knows is asked there (`worker.vitals`).

Labels are codes of ours, destinations and senders of the settings: no UID, nothing of a patient.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from dicom_node.errors import QUARANTINES, Reason
from dicom_node.lanes import Lane
from worker.bundle import Bundle
from worker.findings import ModelIdentity, StudyFinding

STATIONS, WORKER, DELIVER = CollectorRegistry(), CollectorRegistry(), CollectorRegistry()
"""What both tell; what the worker and what the deliverer tells."""

STATION_SECONDS = Histogram(
    "covariance_station_seconds",
    "Time that one study (or, for store and commit, one object or request) spends at a station.",
    ("station",),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    registry=STATIONS,
)

CLAIMS = Gauge("covariance_claims", "Studies that this worker has claimed and works on.", registry=WORKER)
CONCURRENCY = Gauge("covariance_worker_concurrency", "worker.concurrency.", registry=WORKER)
OUTCOMES = Counter(
    "covariance_studies_finished",
    "Studies by what became of the claim (recorded, unchanged, superseded, stale, no_result, quarantined, "
    "released).",
    ("outcome",),
    registry=WORKER,
)
DECISIONS = Counter(
    "covariance_decisions",
    "Results recorded, by decision (positive, negative, not_analysed).",
    ("decision",),
    registry=WORKER,
)
ABSTENTIONS = Counter(
    "covariance_abstentions",
    "Images that were not scored, by disposition (by_policy, quarantined) and reason.",
    ("disposition", "reason"),
    registry=WORKER,
)
SCORES = Histogram(
    "covariance_score",
    "Probability of the positive class of each scored image.",
    buckets=tuple(round(0.05 * step, 2) for step in range(1, 21)),
    registry=WORKER,
)
TURNAROUND_SECONDS = Histogram(
    "covariance_turnaround_seconds",
    "From the last image of a study, as the node received it, to its result in the ledger, by lane.",
    ("lane",),
    buckets=(1, 2.5, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400),
    registry=WORKER,
)
DECODERS_REPLACED = Counter(
    "covariance_decoders_replaced", "Decoder processes that hung or died.", ("why",), registry=WORKER
)
PARITY_PASSED = Gauge(
    "covariance_parity_gate_passed",
    "1 when the engine has replayed the golden cases, else 0; of the bundle that serves or of its shadow.",
    ("bundle",),
    registry=WORKER,
)
PARITY_TIME = Gauge(
    "covariance_parity_gate_timestamp_seconds",
    "When the parity gate was last tried.",
    ("bundle",),
    registry=WORKER,
)
PARITY_LOGIT = Gauge(
    "covariance_parity_gate_logit_difference",
    "Largest difference of a logit from the reference.",
    ("bundle",),
    registry=WORKER,
)
PARITY_TOLERANCE = Gauge(
    "covariance_parity_gate_logit_tolerance", "Largest difference that passes.", ("bundle",), registry=WORKER
)
for _gauge in (PARITY_PASSED, PARITY_TIME, PARITY_LOGIT, PARITY_TOLERANCE):
    # Before the gate is tried: an engine that never comes that far is to be seen, too.
    _gauge.labels("serving")
THRESHOLD = Gauge("covariance_threshold", "A study at or above it is positive.", registry=WORKER)
BUNDLE = Info("covariance_bundle", "Model bundle and engine that serve.", registry=WORKER)

DELIVERIES = Counter(
    "covariance_deliveries",
    "Objects by what happened at the destination (stored, retry, no_answer, failed, parked, committed, "
    "verified, missing).",
    ("destination", "status"),
    registry=DELIVER,
)
COMMITMENT_SECONDS = Histogram(
    "covariance_commitment_lag_seconds",
    "From an object's storage at the destination to the proof of it.",
    ("destination",),
    buckets=(0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400),
    registry=DELIVER,
)
REACHABLE = Gauge(
    "covariance_destination_reachable",
    "0 while the destination is left alone because it did not answer, else 1.",
    ("destination",),
    registry=DELIVER,
)
BROKER_UP = Gauge("covariance_broker_up", "1 while the broker answers.", registry=DELIVER)
MESSAGES = Gauge(
    "covariance_queue_messages", "Messages that wait in the broker, by lane.", ("lane",), registry=DELIVER
)
ANNOUNCED_AGAIN = Counter(
    "covariance_studies_announced_again", "Studies that the reconciler rang for.", registry=DELIVER
)
STEP_FAILURES = Counter(
    "covariance_step_failures", "Steps of the deliverer's loops that failed.", ("step",), registry=DELIVER
)
STEP_TIME = Gauge(
    "covariance_step_timestamp_seconds",
    "When a step of each loop last ended well.",
    ("step",),
    registry=DELIVER,
)
AUDIT_INTACT = Gauge(
    "covariance_audit_chain_intact", "0 when an event is not as it was written, else 1.", registry=DELIVER
)
AUDIT_WALKED = Gauge(
    "covariance_audit_verified_timestamp_seconds",
    "When the walk along the audit trail last came to its end.",
    registry=DELIVER,
)
AUDIT_VERIFIED = Gauge(
    "covariance_audit_verified_events", "How many events the walk has found sound.", registry=DELIVER
)
AUDIT_UNEXPORTED = Gauge(
    "covariance_audit_unexported_events",
    "Events that the syslog server has not read yet; 0 where audit.syslog_host is not set.",
    registry=DELIVER,
)
CHECKPOINT_FITS = Gauge(
    "covariance_audit_checkpoint_fits",
    "0 when the trail no longer holds the last checkpoint, 1 when it does or none is kept.",
    registry=DELIVER,
)
CHECKPOINT_TIME = Gauge(
    "covariance_audit_checkpoint_timestamp_seconds",
    "When the trail was last compared with its checkpoints; 0 where audit.checkpoints is not set.",
    registry=DELIVER,
)

HEARTBEAT_PERIOD = Gauge(
    "covariance_heartbeat_period_seconds", "heartbeat.every_minutes; 0 where it is off.", registry=DELIVER
)
HEARTBEAT_AGE = Gauge(
    "covariance_heartbeat_age_seconds",
    "Since the last heartbeat study that has a result was received.",
    registry=DELIVER,
)
HEARTBEAT_SECONDS = Gauge(
    "covariance_heartbeat_turnaround_seconds",
    "From the reception of the last heartbeat study to its result.",
    registry=DELIVER,
)
HEARTBEATS = Counter(
    "covariance_heartbeats",
    "Heartbeat studies by what the node answered (stored, refused, unavailable).",
    ("outcome",),
    registry=DELIVER,
)

CHECKPOINT_FITS.set(1)
AUDIT_INTACT.set(1)
# A series that appears with its first event has no rate at that event: these begin at zero.
for _outcome in ("recorded", "unchanged", "superseded", "stale", "no_result", "quarantined", "released"):
    OUTCOMES.labels(_outcome)
for _lane in Lane:
    TURNAROUND_SECONDS.labels(_lane)
for _decision in ("positive", "negative", "not_analysed"):
    DECISIONS.labels(_decision)
for _answer in ("stored", "refused", "unavailable"):
    HEARTBEATS.labels(_answer)
for _reason in QUARANTINES:
    ABSTENTIONS.labels("quarantined", _reason)
for _why in ("hung", "died"):
    DECODERS_REPLACED.labels(_why)

STATUSES = ("stored", "retry", "no_answer", "failed", "parked", "committed", "verified", "missing")
"""Of a delivery, as it is counted."""


def know_destination(name: str) -> None:
    """Begin the series of a destination."""
    REACHABLE.labels(name).set(1)
    COMMITMENT_SECONDS.labels(name)
    for status in STATUSES:
        DELIVERIES.labels(name, status)


def know_model(bundle: Bundle, model: ModelIdentity) -> None:
    """Say which bundle serves."""
    THRESHOLD.set(model.threshold)
    BUNDLE.info(
        {
            "name": model.name,
            "version": model.version,
            "model_sha256": model.sha256,
            "bundle_sha256": bundle.sha256,
            "recipe": model.recipe,
            "engine": model.engine,
            "precision": model.precision,
            "operating_point": model.operating_point,
        }
    )


def count_finding(finding: StudyFinding) -> None:
    """Count the images of a study that was finished, and its decision."""
    for score in finding.scores:
        SCORES.observe(score.probability)
    for reading in finding.set_aside:
        count_abstention("by_policy", reading.eligibility.reason)
    for rejected in finding.quarantined:
        count_abstention("quarantined", rejected.reason)


def count_abstention(disposition: str, reason: Reason | None, images: int = 1) -> None:
    """Count images that were not scored."""
    ABSTENTIONS.labels(disposition, reason or "").inc(images)
