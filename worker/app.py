"""The Celery worker: hears the doorbell and runs the pipeline, in threads of one process.

Threads, because CUDA does not survive a fork and one engine serves all; what needs guarding
(decoding) runs in child processes of its own.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import ExitStack

from celery import Task
from celery.signals import worker_ready

from dicom_node import metrics as node_metrics
from dicom_node.dispatch import QUEUES, SCORE_STUDY, Dispatcher, Word, celery_app
from dicom_node.endpoint import Endpoint
from dicom_node.errors import ConfigurationError, CovarianceError
from dicom_node.logs import get_logger
from dicom_node.spool import Spool
from worker import metrics
from worker.drain import DRAINED_EXIT, stays_down
from worker.ending import Ending
from worker.engines import DeviceLost
from worker.gpu import GpuUse
from worker.lanes import Backfill, backfill_places, transport_options
from worker.ledger import open_ledger
from worker.pipeline import Pipeline
from worker.scorer import Scorer
from worker.settings import Settings
from worker.shadow import Shadow

log = get_logger("worker")


def run_worker(settings: Settings) -> int:
    """Serve until SIGTERM, SIGINT or `drain`; a study in progress is finished first.

    Returns:
        The exit code: 0, or `DRAINED_EXIT` where the worker is to stay down.

    Raises:
        ConfigurationError: bundle, engine or database is not fit to serve.
        DeviceLost: the engine's device failed; a new process may find it in order.
    """
    ending = Ending()
    name = f"{socket.gethostname()}:{os.getpid()}"
    spool = Spool(settings.spool.path)
    serving = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(_endpoint(settings, serving))
        scorer = stack.enter_context(Scorer(settings))
        shadow = stack.enter_context(Shadow(settings.worker)) if settings.worker.shadow_bundle else None
        ledger = stack.enter_context(open_ledger(settings, migrate=True))
        if (why := ledger.recalled_models().get(scorer.model.sha256)) is not None:
            raise ConfigurationError(
                f"The model of {scorer.bundle.directory} was recalled: {why} Activate another one."
            )
        dispatcher = Dispatcher(settings)
        stack.callback(dispatcher.close)
        pipeline = Pipeline(
            settings=settings,
            spool=spool,
            ledger=ledger,
            scorer=scorer,
            worker=name,
            shadow=shadow,
            on_recorded=lambda: dispatcher.tell(Word.RECORDED),
        )
        app = celery_app(settings)
        backfill = Backfill(backfill_places(settings.worker.concurrency, settings.lanes.backfill_share))
        app.conf.broker_transport_options |= transport_options(backfill)

        @app.task(name=SCORE_STUDY, bind=True)  # type: ignore[untyped-decorator]
        def score_study(task: Task, study_instance_uid: str) -> None:
            try:
                pipeline.score_study(study_instance_uid)
            except DeviceLost as error:
                ending.begin(error)
            except CovarianceError as error:
                log.warning("study_waits", study=study_instance_uid, why=str(error))
            except Exception as error:  # noqa: BLE001 (task boundary)
                # The text of an unknown error may quote a data set: only its type is safe to log.
                log.error("study_failed", study=study_instance_uid, error=type(error).__name__)
            finally:
                backfill.ended(task.request.id)

        @worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
        def ready(**_: object) -> None:
            serving.set()
            log.info("worker_ready", model=scorer.model.name, engine=scorer.model.engine)

        app.worker_main(
            [
                "worker",
                "--pool=threads",
                f"--concurrency={settings.worker.concurrency}",
                f"--queues={','.join(QUEUES.values())}",
                f"--hostname=covariance@{name}",
                "--without-gossip",
                "--without-mingle",
                "--loglevel=WARNING",
            ]
        )
    if ending.cause is not None:
        raise ending.cause
    return DRAINED_EXIT if stays_down() else 0


def _endpoint(settings: Settings, serving: threading.Event) -> Endpoint:
    """Open before the engine is: a gate that does not let it through is to be seen."""
    metrics.CONCURRENCY.set(settings.worker.concurrency)
    registry = node_metrics.process_registry(
        "worker", {"spool": settings.spool.path}, metrics.WORKER, metrics.STATIONS, GpuUse()
    )

    def objection() -> str | None:
        return None if serving.is_set() else "The engine has not passed the parity gate yet."

    section = settings.metrics
    return Endpoint(registry, host=section.host, port=section.worker_port, readiness=objection)
