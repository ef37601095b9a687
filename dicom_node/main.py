"""The node as a process: listener, assembler and doorbell around one spool."""

from __future__ import annotations

import contextlib
import queue
import resource
import signal
import time
from collections.abc import Callable

from dicom_node import metrics
from dicom_node.assemble import Assembler
from dicom_node.dispatch import Dispatcher, Word
from dicom_node.endpoint import Endpoint
from dicom_node.logs import get_logger
from dicom_node.memory import give_back_buffers
from dicom_node.reload import Reloader
from dicom_node.server import StorageServer
from dicom_node.settings import NodeSettings, read_settings
from dicom_node.spool import Spool, SpooledInstance
from dicom_node.wire import BUFFER_BYTES

log = get_logger("node")


class Node:
    """Receives until it is stopped. What it does not announce is found by the reconciler."""

    def __init__(
        self, settings: NodeSettings, read: Callable[[], NodeSettings] = lambda: read_settings(NodeSettings)
    ) -> None:
        self._spool = Spool(settings.spool.path, minimum_free_bytes=settings.spool.minimum_free_bytes)
        self._server = StorageServer(settings, self._spool, self._filed, self._reported)
        self._assembler = Assembler(settings.assembly.quiet_seconds, settings.assembly.cap_seconds)
        self._dispatcher = Dispatcher(settings)
        self._endpoint = _endpoint(settings, self._spool)
        metrics.MINIMUM_FREE.set(settings.spool.minimum_free_bytes)
        metrics.ASSEMBLING.set_function(lambda: len(self._assembler))
        self._reloader = Reloader(settings, read, self._server.reload)
        # What has arrived and when, a word for others, or None to wake up. A signal handler may fill it.
        self._arrivals: queue.SimpleQueue[tuple[SpooledInstance, float] | Word | None] = queue.SimpleQueue()
        # No Event: it takes a lock, and a signal handler may interrupt who holds it.
        self._stopping = False

    def run(self, ready: Callable[[int], None] | None = None) -> None:
        """Listen, call `ready` with the port, and ring for complete studies until `stop`."""
        self._spool.prepare()
        port = self._server.start()
        self._reloader.start()
        self._endpoint.start()
        try:
            if ready is not None:
                ready(port)
            self._ring_until_stopped()
        finally:
            self._endpoint.stop()
            self._reloader.stop()
            self._server.stop()
            self._dispatcher.close()
            log.info("stopped")

    def stop(self) -> None:
        """Make `run` return; from any thread or signal handler."""
        self._stopping = True
        self._arrivals.put(None)

    def reload(self) -> None:
        """Take up callers and certificates as they are now; from any thread or signal handler."""
        self._reloader.ask()

    def _filed(self, instance: SpooledInstance) -> None:
        # By now: a broker that is slow to take a word must not lengthen the quiet period.
        self._arrivals.put((instance, time.monotonic()))

    def _reported(self) -> None:
        self._arrivals.put(Word.REPORTED)

    def _ring_until_stopped(self) -> None:
        # Thousands may wait in front of a word to stop, and each of them for the broker.
        while not self._stopping:
            due = self._assembler.next_due()
            timeout = None if due is None else max(due - time.monotonic(), 0.0)
            with contextlib.suppress(queue.Empty):
                arrived = self._arrivals.get(timeout=timeout)
                if isinstance(arrived, Word):
                    self._dispatcher.tell(arrived)
                elif arrived is not None:
                    instance, at = arrived
                    self._assembler.arrived(instance.study_instance_uid, at, instance.lane)
            for study, lane in self._assembler.due(time.monotonic()).items():
                if self._stopping:
                    return
                rung = self._dispatcher.ring(study, lane)
                metrics.RELEASED.labels("yes" if rung else "no").inc()
                log.info("study_released", study=study, lane=lane, rung=rung)


def _endpoint(settings: NodeSettings, spool: Spool) -> Endpoint:
    section = settings.metrics
    return Endpoint(
        metrics.process_registry("node", {"spool": spool.root}, metrics.REGISTRY),
        host=section.host,
        port=section.node_port,
        readiness=spool.objection,
    )


def run_node(
    settings: NodeSettings,
    *,
    ready: Callable[[int], None] | None = None,
    read: Callable[[], NodeSettings] = lambda: read_settings(NodeSettings),
) -> None:
    """Run the node in this process until SIGTERM or SIGINT. To be called from the main thread.

    SIGHUP has it read callers and certificates again; `read` reads the settings once more.
    """
    give_back_buffers(larger_than=BUFFER_BYTES // 2)
    _raise_descriptor_limit()
    node = Node(settings, read)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.stop())
    signal.signal(signal.SIGHUP, lambda *_: node.reload())
    node.run(ready)


def _raise_descriptor_limit() -> None:
    # An association takes a connection and a file. The usual 1024 is for select(), which we do not use.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
