"""The tables of the ledger.

A study has images (what came in), jobs (one a generation), results (one a model and input set),
outputs (the objects that a result is written back as) and deliveries (one an output and destination).
`events` is the audit trail: rows are only ever added, each sealed with the digest of the one before.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from enum import StrEnum
from typing import cast

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dicom_node.errors import Reason
from dicom_node.lanes import Lane
from worker.findings import Role, Vendor, View


class Disposition(StrEnum):
    """Where an image ended. Every registered image has exactly one, so that the count adds up."""

    PENDING = "pending"
    SCORED = "scored"
    BY_POLICY = "by_policy"
    QUARANTINED = "quarantined"


class JobState(StrEnum):
    """Where the job of one generation stands."""

    READY = "ready"
    CLAIMED = "claimed"
    DONE = "done"
    QUARANTINED = "quarantined"
    SUPERSEDED = "superseded"


class DeliveryState(StrEnum):
    """Where one output stands at one destination."""

    DUE = "due"
    STORED = "stored"
    """The destination answered the C-STORE with success; not proven yet."""
    COMMITTED = "committed"
    """Proven by storage commitment."""
    VERIFIED = "verified"
    """Proven by a C-FIND."""
    FAILED = "failed"
    """The destination refuses the object; people must act."""
    PARKED = "parked"
    """The destination does not take this kind of object, or us; people must act."""
    CANCELLED = "cancelled"
    """A newer result took its place before it was stored."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, to the microsecond, on databases with and without time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Bring an aware time to UTC; SQLite keeps it as text, which sorts as time does."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("the ledger takes times with a zone only")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return an aware time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Words(TypeDecorator[StrEnum]):
    """Members of an enumeration that grows. One that a newer version has written is read as a plain string:
    older programs go on beside it, and after a rollback."""

    impl = String
    cache_ok = True

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__(length=32)
        self.kind = kind

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """The word."""
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:  # noqa: ARG002
        """The member, or the word where there is none."""
        try:
            return None if value is None else self.kind(value)
        except ValueError:
            return cast("StrEnum", value)


class Base(DeclarativeBase):
    """Naming and types that every table shares."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's own protocol)
        datetime: UtcDateTime(),
        str: Text(),
        Reason: Words(Reason),
        Role: Words(Role),
        enum.Enum: Enum(
            enum.Enum,
            native_enum=False,
            length=32,
            values_callable=lambda members: [member.value for member in members],
        ),
    }


class Study(Base):
    """A study of which at least one image was registered."""

    __tablename__ = "studies"
    __table_args__ = (Index(None, "registered_at"),)

    study_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    generation: Mapped[int]
    """The newest one; 0 while no image of the study gave work."""
    registered_at: Mapped[datetime]
    conflict_at: Mapped[datetime | None]
    """When its images were found to name different patients: nothing of it is sent until that is mended."""


def _partial_index(name: str, column: str, where: str) -> Index:
    # History grows for ever: these hold only what is still to be done.
    return Index(name, column, sqlite_where=text(where), postgresql_where=text(where))


class Image(Base):
    """One content of one SOP instance, as spooled."""

    __tablename__ = "images"
    __table_args__ = (
        UniqueConstraint("study_instance_uid", "sop_instance_uid", "sha256"),
        _partial_index("ix_images_kept", "received_at", "purged_at IS NULL"),
        _partial_index("ix_images_leaving", "purged_at", "purged_at IS NOT NULL AND removed_at IS NULL"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey(Study.study_instance_uid))
    series_instance_uid: Mapped[str]
    sop_instance_uid: Mapped[str]
    sop_class_uid: Mapped[str]
    transfer_syntax_uid: Mapped[str]
    sha256: Mapped[str]
    path: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    calling_ae: Mapped[str]
    called_ae: Mapped[str]
    address: Mapped[str]
    received_at: Mapped[datetime]
    registered_at: Mapped[datetime]
    generation: Mapped[int | None]
    """The first generation that takes it as input; None when it never gave work."""
    disposition: Mapped[Disposition]
    reason: Mapped[Reason | None]
    sentence: Mapped[str | None]
    logit: Mapped[float | None]
    probability: Mapped[float | None]
    manufacturer: Mapped[Vendor | None]
    """None where nothing could be read, or an earlier version read it."""
    view: Mapped[View | None]
    purged_at: Mapped[datetime | None]
    """When it was decided that the file goes. The row stays."""
    removed_at: Mapped[datetime | None]
    """When the file was gone."""


class Job(Base):
    """The scoring of one generation of one study. At most one job of a study is ready or claimed."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("study_instance_uid", "generation"),
        Index(None, "state", "not_before"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey(Study.study_instance_uid))
    generation: Mapped[int]
    state: Mapped[JobState]
    attempt: Mapped[int]
    """Claims that ended in silence, and the one that runs, since the job was made or retried by hand."""
    releases: Mapped[int]
    """Claims given back in good order, since then: what the job needed was away."""
    fence: Mapped[int]
    """Claims ever; only raised. A writer with an older one has lost the job."""
    lane: Mapped[Lane | None]
    """Where it is announced. None is routine: so earlier versions leave it."""
    not_before: Mapped[datetime]
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    reason: Mapped[Reason | None]
    sentence: Mapped[str | None]
    created_at: Mapped[datetime]
    claimed_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Result(Base):
    """What one model made of one set of images in one generation."""

    __tablename__ = "results"
    __table_args__ = (
        UniqueConstraint(
            "study_instance_uid",
            "configuration",
            "input_set_hash",
            "generation",
            name="uq_results_study_configuration_input_set_generation",
        ),
        Index(None, "configuration", "recorded_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey(Study.study_instance_uid))
    job_id: Mapped[int] = mapped_column(ForeignKey(Job.id))
    generation: Mapped[int]
    input_set_hash: Mapped[str]
    model_name: Mapped[str]
    model_version: Mapped[str]
    model_sha256: Mapped[str]
    configuration: Mapped[str]
    """`ModelIdentity.configuration`: another threshold makes another result."""
    engine: Mapped[str]
    precision: Mapped[str]
    recipe: Mapped[str]
    threshold: Mapped[float]
    operating_point: Mapped[str]
    decision: Mapped[str | None]
    """`positive`, `negative`, or None when no image was analysed."""
    logit: Mapped[float | None]
    probability: Mapped[float | None]
    analysed_at: Mapped[datetime]
    recorded_at: Mapped[datetime]
    superseded_at: Mapped[datetime | None]
    recalled_at: Mapped[datetime | None]
    """When it was recalled with its model; it is superseded since then at the latest."""


class Output(Base):
    """An object that is written back, as exact bytes in the outbox."""

    __tablename__ = "outputs"
    __table_args__ = (
        UniqueConstraint("sop_instance_uid"),
        Index(None, "result_id"),
        Index(None, "dropped_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey(Result.id))
    role: Mapped[Role]
    sop_class_uid: Mapped[str]
    sop_instance_uid: Mapped[str]
    series_instance_uid: Mapped[str]
    sha256: Mapped[str]
    path: Mapped[str]
    dropped_at: Mapped[datetime | None]
    """When the bytes were removed from the outbox."""


class Delivery(Base):
    """One output on its way to one destination."""

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("output_id", "destination"),
        Index(None, "destination", "state", "due_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    output_id: Mapped[int] = mapped_column(ForeignKey(Output.id))
    destination: Mapped[str]
    state: Mapped[DeliveryState]
    attempts: Mapped[int]
    refusals: Mapped[int] = mapped_column(default=0)
    """Refusals in a row; any other outcome begins anew."""
    due_at: Mapped[datetime]
    last_status: Mapped[int | None]
    """DIMSE status of the last C-STORE; None when none came back."""
    sentence: Mapped[str | None]
    created_at: Mapped[datetime]
    stored_at: Mapped[datetime | None]
    proven_at: Mapped[datetime | None]
    misses: Mapped[int | None]
    """Times that the destination stored the object and then did not show it; empty for none."""


class Commitment(Base):
    """A delivery within a storage-commitment transaction; an older transaction may still be answered."""

    __tablename__ = "commitments"
    __table_args__ = (
        UniqueConstraint("transaction_uid", "delivery_id"),
        Index(None, "delivery_id", "deadline"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    transaction_uid: Mapped[str]
    delivery_id: Mapped[int] = mapped_column(ForeignKey(Delivery.id))
    requested_at: Mapped[datetime]
    deadline: Mapped[datetime]
    status: Mapped[int | None]
    """DIMSE status of the request if it was refused."""
    reported_at: Mapped[datetime | None]


class Event(Base):
    """One line of the audit trail. Triggers refuse every UPDATE and DELETE."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "study_instance_uid"),)

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[str]
    """ISO 8601 in UTC, as text: what was hashed is what is kept."""
    kind: Mapped[str]
    study_instance_uid: Mapped[str | None]
    body: Mapped[str]
    """Canonical JSON, ASCII."""
    previous: Mapped[str]
    """`hash` of the event before; zeros for the first."""
    hash: Mapped[str]
    """SHA-256 over all the columns above, see `worker.ledger.audit`."""


class Cursor(Base):
    """How far somebody has read the audit trail."""

    __tablename__ = "cursors"

    reader: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)
    """The last event that this reader has taken over."""


class TakenWindow(Base):
    """A window of refusals that stands in the audit trail: its file may be there once more after a crash."""

    __tablename__ = "taken_windows"

    name: Mapped[str] = mapped_column(primary_key=True)
    taken_at: Mapped[datetime]


class RecalledModel(Base):
    """A model that was withdrawn: nothing of it is recorded any more."""

    __tablename__ = "recalled_models"

    model_sha256: Mapped[str] = mapped_column(primary_key=True)
    recalled_at: Mapped[datetime]
    why: Mapped[str]
    """One sentence of whoever recalled it."""


class ShadowScore(Base):
    """What a second bundle said of a film, beside the first. It is no result and goes nowhere."""

    __tablename__ = "shadow_scores"
    __table_args__ = (
        UniqueConstraint(
            "study_instance_uid",
            "generation",
            "sop_instance_uid",
            "shadow_sha256",
            name="uq_shadow_scores_film",
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str]
    generation: Mapped[int]
    sop_instance_uid: Mapped[str]
    model_sha256: Mapped[str]
    positive: Mapped[bool]
    probability: Mapped[float]
    shadow_sha256: Mapped[str]
    shadow_positive: Mapped[bool]
    shadow_probability: Mapped[float]
    recorded_at: Mapped[datetime]


class SchemaCompatibility(Base):
    """One row, beside Alembic's own: which programs can work with the schema (`worker.ledger.migrate`)."""

    __tablename__ = "schema_compatibility"

    compatible_since: Mapped[str] = mapped_column(primary_key=True)
    """The oldest revision whose programs can."""
