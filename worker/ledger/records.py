"""What the ledger tells: plain values that a table or JSON can show (`dataclasses.asdict`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dicom_node.errors import Reason
from dicom_node.lanes import Lane
from worker.findings import Role
from worker.ledger.audit import ChainHead
from worker.ledger.models import DeliveryState, Disposition, JobState


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image and where it ended."""

    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    path: str
    size: int
    calling_ae: str
    called_ae: str
    address: str
    received_at: datetime
    generation: int | None
    disposition: Disposition
    reason: Reason | None
    sentence: str | None
    logit: float | None
    probability: float | None
    purged_at: datetime | None
    """When it was decided that the file goes."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A generation and its job."""

    generation: int
    state: JobState
    attempt: int
    releases: int
    fence: int
    lane: Lane | None
    """None is routine."""
    worker: str | None
    not_before: datetime
    lease_until: datetime | None
    reason: Reason | None
    sentence: str | None
    created_at: datetime
    claimed_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class DeliveryRecord:
    """An output at a destination."""

    destination: str
    state: DeliveryState
    attempts: int
    due_at: datetime
    last_status: int | None
    sentence: str | None
    stored_at: datetime | None
    proven_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class OutputRecord:
    """An object that is written back."""

    role: Role
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    sha256: str
    path: str
    dropped_at: datetime | None
    deliveries: tuple[DeliveryRecord, ...]


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """What one model made of one set of images."""

    generation: int
    model_name: str
    model_version: str
    model_sha256: str
    configuration: str
    engine: str
    precision: str
    recipe: str
    threshold: float
    operating_point: str
    input_set_hash: str
    decision: str | None
    logit: float | None
    probability: float | None
    analysed_at: datetime
    recorded_at: datetime
    superseded_at: datetime | None
    recalled_at: datetime | None
    """When it was recalled with its model."""
    outputs: tuple[OutputRecord, ...]


@dataclass(frozen=True, kw_only=True)
class EventRecord:
    """A line of the audit trail."""

    seq: int
    at: str
    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrailEvent:
    """A line of the audit trail as it stands in the chain."""

    seq: int
    at: str
    kind: str
    study_instance_uid: str | None
    body: str
    """JSON, as it was sealed."""
    hash: str


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """All that the ledger knows of one study, oldest first."""

    study_instance_uid: str
    generation: int
    registered_at: datetime
    conflict_at: datetime | None
    """When its images were found to name different patients: nothing of it is sent since."""
    images: tuple[ImageRecord, ...]
    jobs: tuple[JobRecord, ...]
    results: tuple[ResultRecord, ...]
    events: tuple[EventRecord, ...]


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """One line of the list of studies."""

    study_instance_uid: str
    registered_at: datetime
    generation: int
    images: int
    job: JobState | None
    """Of the newest generation; None when no image gave work."""
    reason: Reason | None
    """Why that job is quarantined."""
    decision: str | None
    probability: float | None
    deliveries: Mapping[DeliveryState, int]
    """Of the result in force."""


@dataclass(frozen=True, kw_only=True)
class LedgerStatus:
    """Counts by name; a name without rows is left out of the mappings by reason and destination."""

    studies: int
    images: Mapping[Disposition, int]
    """Every registered image is in exactly one."""
    by_policy: Mapping[str, int]
    """By reason."""
    quarantined: Mapping[str, int]
    """By reason."""
    purged: int
    """Images whose files are gone or go: they are still counted in `images`."""
    jobs: Mapping[JobState, int]
    results: Mapping[str, int]
    """Results in force: `positive`, `negative`, `not_analysed`."""
    deliveries: Mapping[str, Mapping[DeliveryState, int]]
    """By destination, then state."""
    oldest_seconds: Mapping[str, float]
    """Age of what has waited longest: `pending` image, `ready` and `claimed` job, `due` and `stored`
    delivery. Absent where nothing waits."""
    head: ChainHead
    """The end of the audit trail."""
