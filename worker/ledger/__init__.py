"""The ledger: what was done with every study, and the audit trail of it.

Every method is one transaction (a second chance for everything is one a hundred studies), writes its
events within it, and raises `Retryable` when the database is away or busy; nothing then was done that
calling again would do twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

from sqlalchemy.exc import DBAPIError

from dicom_node.errors import ConfigurationError
from worker.ledger import migrate as migration
from worker.ledger.again import Again, SelectedStudy, Selection
from worker.ledger.audit import ChainHead, Kind, Verification, verify_chain, verify_next
from worker.ledger.commitments import CommitmentOutcome, Commitments
from worker.ledger.deliveries import DueDelivery, Proven
from worker.ledger.heartbeats import Beat, Heartbeats
from worker.ledger.intake import Intake, Registration
from worker.ledger.jobs import Claim, Recorded
from worker.ledger.models import DeliveryState, Disposition, JobState
from worker.ledger.outbox import DroppableOutput, Outbox
from worker.ledger.populations import Populations
from worker.ledger.recalls import ModelResult, Recalls, SentObject
from worker.ledger.records import (
    DeliveryRecord,
    EventRecord,
    ImageRecord,
    JobRecord,
    LedgerStatus,
    OutputRecord,
    ResultRecord,
    StudyRecord,
    StudySummary,
    TrailEvent,
)
from worker.ledger.refusals import Refusals
from worker.ledger.results import Results
from worker.ledger.retention import LeavingFile, PurgeableStudy, PurgeRule, Retention
from worker.ledger.retry import QuarantinedImage, QuarantinedStudy, Retry
from worker.ledger.shadows import Shadows, ShadowScore
from worker.ledger.store import Clock, Files, make_engine
from worker.ledger.trail import Trail
from worker.ledger.views import Views
from worker.ledger.vitals import Vitals, VitalSigns, Waiting
from worker.ledger.volumes import History
from worker.settings import Settings

__all__ = [
    "Beat",
    "ChainHead",
    "Claim",
    "CommitmentOutcome",
    "DeliveryRecord",
    "DeliveryState",
    "Disposition",
    "DroppableOutput",
    "DueDelivery",
    "EventRecord",
    "ImageRecord",
    "JobRecord",
    "JobState",
    "Kind",
    "LeavingFile",
    "Ledger",
    "LedgerStatus",
    "ModelResult",
    "OutputRecord",
    "Proven",
    "PurgeRule",
    "PurgeableStudy",
    "QuarantinedImage",
    "QuarantinedStudy",
    "Recorded",
    "Registration",
    "ResultRecord",
    "SelectedStudy",
    "Selection",
    "SentObject",
    "ShadowScore",
    "StudyRecord",
    "StudySummary",
    "TrailEvent",
    "Verification",
    "Vitals",
    "Waiting",
    "open_ledger",
]

_NOT_THE_OWNER = "42501"  # PostgreSQL's insufficient_privilege


class Ledger(
    Intake,
    Results,
    Commitments,
    Outbox,
    Retention,
    Retry,
    Again,
    Recalls,
    Shadows,
    Refusals,
    Trail,
    Views,
    VitalSigns,
    History,
    Heartbeats,
    Populations,
):
    """All of it behind one name. Safe to share between threads; several processes may open the same."""

    def verify(
        self,
        noted: Mapping[ChainHead, str] | None = None,
        *,
        progress: Callable[[int], object] = lambda _: None,
    ) -> Verification:
        """Walk the audit trail from its first event and name the first that is not as it was written.

        Args:
            noted: heads that were noted earlier, and where; without one neither a cut-off end nor a past
                that was written anew can be seen.
            progress: called now and then with the number of events that were found sound.
        """
        return verify_chain(self._reading, noted or {}, progress)

    def verify_next(self, head: ChainHead, *, limit: int) -> Verification:
        """Verify the next events behind `head`, which an earlier look found sound."""
        return verify_next(self._reading, head, limit)

    def schema(self) -> migration.Schema:
        """Where the database stands, seen from this version."""
        return migration.standing(self._engine)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_ledger(
    settings: Settings, *, migrate: bool, all_stopped: bool = False, clock: Clock | None = None
) -> Ledger:
    """Open the ledger that the settings name; `migrate` first brings its schema to this version.

    `all_stopped`: no program of an older version runs, so that none breaks by it.

    Its times are the database's own on PostgreSQL, the machine's on SQLite, and `clock`'s where one is given.

    Raises:
        ConfigurationError: the URL, its driver or the schema cannot be used.
        Retryable: the database is away or busy.
    """
    database = settings.database
    engine = make_engine(database.url)
    try:
        if migrate:
            migration.migrate(engine, all_stopped=all_stopped)
        else:
            migration.check(engine)
    except BaseException as error:
        engine.dispose()
        if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _NOT_THE_OWNER:
            raise ConfigurationError(
                "This login may not change the schema: `covariance audit roles` needs the owner."
            ) from None
        if isinstance(error, DBAPIError):
            raise ConfigurationError("What database.url names cannot be used as the ledger.") from None
        raise
    key = database.patient_hash_key.get_secret_value().encode()
    return Ledger(engine, key, Files(settings.spool.path), clock)
