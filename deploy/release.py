"""`covariance release`: a study that waits is scored now, with the images that have come."""

from __future__ import annotations

import typer

from deploy import broker
from dicom_node.dispatch import Dispatcher
from dicom_node.errors import CovarianceError, Retryable
from dicom_node.lanes import Lane
from dicom_node.logs import configure_logs
from dicom_node.spool import Spool, SpooledInstance
from worker.ledger import JobRecord, JobState, Ledger, open_ledger
from worker.settings import Settings


def release_study(settings: Settings, study: str) -> None:
    """Do as if the study's quiet period were over, and its pause where it has one; ring for it.

    A later image makes a new generation, as always.

    Raises:
        CovarianceError: nothing of it is there, or it does not wait.
        Retryable: database or spool is away.
    """
    configure_logs(level="ERROR")
    instances = _spooled(settings, study)
    with open_ledger(settings, migrate=False) as ledger:
        # What a worker would do first: from here on the reconciler knows it, whatever becomes of the ring.
        if instances:
            ledger.register(study, instances)
        job = _newest_job(ledger, study)
        if job is None or not ledger.hasten(study):
            raise CovarianceError(_why_not(job, images=len(instances)))
    dispatcher = Dispatcher(broker.reachable(settings))
    # Whatever its lane: somebody waits for it. The reconciler rings in its own, if this is lost.
    rung = dispatcher.ring(study, Lane.STAT)
    dispatcher.close()
    typer.echo(
        f"Generation {job.generation} with {len(instances)} images is released; "
        + ("the next free worker takes it." if rung else "the broker is away, and is told when it is back.")
    )


def _spooled(settings: Settings, study: str) -> list[SpooledInstance]:
    try:
        return Spool(settings.spool.path).instances(study)
    except OSError as error:
        raise Retryable(f"The spool cannot be read: {type(error).__name__} {error.errno}.") from None


def _newest_job(ledger: Ledger, study: str) -> JobRecord | None:
    record = ledger.study(study)
    jobs = record.jobs if record else ()
    return max(jobs, key=lambda job: job.generation, default=None)


def _why_not(job: JobRecord | None, *, images: int) -> str:
    if job is None:
        return "None of its images is to be scored." if images else "No image of this study has come."
    if job.state is JobState.QUARANTINED:
        return f"It was set aside ({job.reason}): `covariance quarantine release` has it scored again."
    if job.state is JobState.DONE:
        return "It is done: `covariance show` has its result, `covariance reprocess` scores it again."
    return "A worker has it in hand."
