"""The doorbell: one message a study on the Celery queue of its lane, holding its UID and nothing else.

The queue is never the truth. A message that is lost costs the time until the reconciler rings again,
so that ringing gives up at once where the broker is away: the node keeps accepting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from celery import Celery
from kombu import Connection, Producer
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from dicom_node.lanes import Lane
from dicom_node.logs import get_logger
from dicom_node.settings import NodeSettings

log = get_logger("dispatch")

_T = TypeVar("_T")

QUEUES = {Lane.STAT: "score.stat", Lane.ROUTINE: "score", Lane.BACKFILL: "score.backfill"}
"""The queue of each lane, the most urgent first. Routine has the name of the only one of earlier versions."""
SCORE_STUDY = "covariance.score_study"
BELL = "bell"
"""Where words are published; kombu puts queue.prefix before it."""

IMPATIENT = {"max_retries": 0, "socket_timeout": 2, "socket_connect_timeout": 1}
"""What a ringer waits for a broker, in seconds; a worker waits for ever."""

_AWAY_SECONDS = 5.0
"""How long a broker that did not take a connection is left alone."""


class Word(StrEnum):
    """What was done."""

    RECORDED = "recorded"
    """A worker has recorded a result: there may be something to deliver."""
    REPORTED = "reported"
    """The node has kept a report of a storage commitment."""


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
    """Rings for studies. Never raises, never waits more than a few seconds; safe to share by threads.

    A broker that hangs costs the one who finds it out those seconds, and nobody else: for a while after,
    what would be rung is not, and the reconciler rings for it later.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self._app = celery_app(settings)
        self._lock = threading.Lock()
        self._connection: Any = None
        self._away_until = 0.0

    def ring(self, study_instance_uid: str, lane: Lane = Lane.ROUTINE) -> bool:
        """Announce a study in its lane; False where the broker is away."""

        def announce(connection: Connection) -> bool:
            args, queue = (study_instance_uid,), QUEUES[lane]
            producer = Producer(connection)
            self._app.send_task(SCORE_STUDY, args=args, queue=queue, producer=producer, retry=False)
            return True

        return self._with(announce) or False

    def tell(self, word: Word) -> None:
        """Say to whom it may concern that something was done; nobody may hear it."""
        self._with(lambda connection: connection.default_channel.client.publish(BELL, word.value))

    def depth(self) -> int | None:
        """How many messages wait in all lanes; None where the broker is away."""
        depths = self.depths()
        return None if depths is None else sum(depths.values())

    def depths(self) -> dict[Lane, int] | None:
        """How many messages wait in each lane; None where the broker is away."""

        def count(connection: Connection) -> dict[Lane, int]:
            client = connection.default_channel.client
            return {lane: int(client.llen(queue)) for lane, queue in QUEUES.items()}

        # Who asks how the broker is wants to know it as it is now.
        return self._with(count, though_away=True)

    def _with(self, use: Callable[[Connection], _T], *, though_away: bool = False) -> _T | None:
        with self._lock:
            if not though_away and time.monotonic() < self._away_until:
                return None
            # An old connection may have been closed by a broker that is there: the next one shows it.
            new = self._connection is None
            try:
                used = use(self._connected())
            except (KombuError, RedisError, OSError) as error:
                log.warning("broker_away", error=type(error).__name__)
                self._drop()
                self._away_until = time.monotonic() + _AWAY_SECONDS if new else 0.0
                return None
            self._away_until = 0.0
            return used

    def close(self) -> None:
        """Close the connection to the broker."""
        with self._lock:
            self._drop()

    def _connected(self) -> Connection:
        if self._connection is None:
            options = {**self._app.conf.broker_transport_options, **IMPATIENT}
            self._connection = self._app.connection_for_write(
                transport_options=options, connect_timeout=IMPATIENT["socket_connect_timeout"]
            )
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.release()
            self._connection = None
