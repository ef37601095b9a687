"""The doorbell: one message a study on the Celery queue of its lane, holding its UID and nothing else.

The queue is never the truth. A message that is lost costs the time until the reconciler rings again,
so that ringing gives up at once where the broker is away: the node keeps accepting.
"""

from __future__ import annotations

import threading
from typing import Any

from celery import Celery
from kombu import Connection, Producer
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from dicom_node.lanes import Lane
from dicom_node.logs import get_logger
from dicom_node.settings import NodeSettings

log = get_logger("dispatch")

QUEUES = {Lane.STAT: "score.stat", Lane.ROUTINE: "score", Lane.BACKFILL: "score.backfill"}
"""The queue of each lane, the most urgent first. Routine has the name of the only one of earlier versions."""
SCORE_STUDY = "covariance.score_study"

_IMPATIENT = {"max_retries": 0, "socket_timeout": 2, "socket_connect_timeout": 1}
"""What a ringer waits for a broker, in seconds; a worker waits for ever."""


def celery_app(settings: NodeSettings) -> Celery:
    """The Celery application that node and worker share.

    Acknowledged late, because a worker that dies must not take a study with it; not again when a
    worker was lost, because a study that kills would then kill for ever; prefetch of one, because a
    film takes a second; no results, because the ledger has them.
    """
    app = Celery("covariance", broker=settings.queue.url, backend=None, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUES[Lane.ROUTINE],
        task_acks_late=True,
        task_ignore_result=True,
        task_reject_on_worker_lost=False,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        # A thread cannot be cancelled; and it need not, because a claim keeps its study from all others.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=30.0,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": 900,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "global_keyprefix": settings.queue.prefix,
        },
    )
    return app


class Dispatcher:
    """Rings for studies. Never raises, never waits more than a few seconds; safe to share by threads."""

    def __init__(self, settings: NodeSettings) -> None:
        self._app = celery_app(settings)
        self._lock = threading.Lock()
        self._connection: Any = None

    def ring(self, study_instance_uid: str, lane: Lane = Lane.ROUTINE) -> bool:
        """Announce a study in its lane; False where the broker is away."""
        with self._lock:
            try:
                producer = Producer(self._connected())
                self._app.send_task(
                    SCORE_STUDY,
                    args=(study_instance_uid,),
                    queue=QUEUES[lane],
                    producer=producer,
                    retry=False,
                )
            except (KombuError, RedisError, OSError) as error:
                self._lost(error)
                return False
            return True

    def depth(self) -> int | None:
        """How many messages wait in all lanes; None where the broker is away."""
        depths = self.depths()
        return None if depths is None else sum(depths.values())

    def depths(self) -> dict[Lane, int] | None:
        """How many messages wait in each lane; None where the broker is away."""
        with self._lock:
            try:
                client = self._connected().default_channel.client
                waiting = {lane: int(client.llen(queue)) for lane, queue in QUEUES.items()}
            except (KombuError, RedisError, OSError) as error:
                self._lost(error)
                return None
            return waiting

    def close(self) -> None:
        """Close the connection to the broker."""
        with self._lock:
            self._drop()

    def _connected(self) -> Connection:
        if self._connection is None:
            options = {**self._app.conf.broker_transport_options, **_IMPATIENT}
            self._connection = self._app.connection_for_write(
                transport_options=options, connect_timeout=_IMPATIENT["socket_connect_timeout"]
            )
        return self._connection

    def _lost(self, error: Exception) -> None:
        log.warning("broker_away", error=type(error).__name__)
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.release()
            self._connection = None
