"""The deliver process: a thread a destination, and the housekeeping beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from dicom_node import metrics as node_metrics
from dicom_node.bell import BellListener
from dicom_node.dispatch import Dispatcher, Word
from dicom_node.endpoint import Endpoint
from dicom_node.errors import Retryable
from dicom_node.failpoints import reach
from dicom_node.logs import get_logger
from dicom_node.spool import Spool
from worker import metrics
from worker.audit_export import AuditExport
from worker.audit_walk import AuditWalk
from worker.checkpoints import Checkpointer
from worker.deliver import Deliverer, tell_proven
from worker.heartbeat import Heartbeat
from worker.ledger import Ledger, open_ledger
from worker.populations import PopulationDrift
from worker.reconcile import Reconciler
from worker.retain import Retainer
from worker.senders import SenderSilence
from worker.settings import Settings
from worker.vitals import LedgerVitals

log = get_logger("office")

_LONGEST_PAUSE = 30.0
_ABANDONED = timedelta(hours=1)
"""Far longer than a worker holds a claim: what is older and not recorded will not be."""

_OUTPUTS = 1000
_HEARTBEAT_SECONDS = 2.0
_WALK_SECONDS = 2.0
_ON_THE_WAY_SECONDS = 0.05
"""Between two looks of a walk that is not at its end."""
_AUDIT_SECONDS = 1.0
"""Pause between two looks at what the audit trail has for the outside."""

_LOOK = 9.0
"""What looks at ledger or spool rests so many times as long as it took: at most a tenth of a core."""


class Loop(NamedTuple):
    """A step that is taken again and again (`repeat`)."""

    step: Callable[[], object]
    pause: float
    gather: float | None = None
    """The pause after a step that had work, where it is another."""
    rests: float = 0.0
    """How many times the seconds of a step are rested after it, at least; 0 for what waits for a peer."""


class Office:
    """All that `covariance deliver` does."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._spool = Spool(settings.spool.path)
        self._ledger = ledger
        self._retainer = Retainer(settings, ledger, clock=self._spool.now)
        self._deliverers = [Deliverer(d, settings=settings, ledger=ledger) for d in settings.destinations]
        self._reconciler = Reconciler(
            assembly=settings.assembly,
            spool=self._spool,
            ledger=ledger,
            dispatcher=Dispatcher(settings),
            clock=self._spool.now,
        )
        self._walk = AuditWalk(ledger)
        self._export = AuditExport(settings, ledger) if settings.audit.syslog_host else None

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        pauses = self._settings.delivery
        looks: list[Callable[[], object]] = [
            self.take_refusals,
            self.drop_outputs,
            self._retainer.step,
        ]
        loops = [
            # Half its time at most: studies wait for it, and what it took may have been a broker that hung.
            Loop(self._reconciler.step, pauses.reconcile_seconds, rests=1.0),
            *(Loop(look, pauses.reconcile_seconds, rests=_LOOK) for look in looks),
            Loop(self.sweep, _LONGEST_PAUSE, rests=_LOOK),
            Loop(self._walk.step, _WALK_SECONDS, _ON_THE_WAY_SECONDS, rests=_LOOK),
            *self._audit_loops(),
            *self._heartbeats(),
        ]
        # Those that a study waits for do not wait for their next look, if they hear a word before.
        gather = max(pauses.poll_seconds, pauses.gather_seconds)
        on_word: dict[Word, list[Loop]] = {
            Word.REPORTED: [Loop(self.take_reports, pauses.poll_seconds)],
            Word.RECORDED: [Loop(one.step, pauses.poll_seconds, gather) for one in self._deliverers],
        }
        bells = {word.value: [threading.Event() for _ in woken] for word, woken in on_word.items()}
        listener = BellListener(self._settings, bells)
        threads = [threading.Thread(target=repeat, args=(loop, stop)) for loop in loops]
        threads += [
            threading.Thread(target=repeat, args=(loop, stop, bell))
            for word, woken in on_word.items()
            for loop, bell in zip(woken, bells[word], strict=True)
        ]
        threads.append(threading.Thread(target=listener.listen, args=(stop,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._export is not None:
            self._export.stop()

    def _heartbeats(self) -> Iterator[Loop]:
        if self._settings.heartbeat.every_minutes:
            yield Loop(Heartbeat(self._settings, self._ledger).step, _HEARTBEAT_SECONDS)

    def endpoint(self) -> Endpoint:
        """The port of this process, for the ledger as a whole."""
        settings = self._settings
        registry = node_metrics.process_registry(
            "deliver",
            {"spool": settings.spool.path, **_ledger_file(settings)},
            metrics.DELIVER,
            metrics.STATIONS,
            SenderSilence(settings, self._ledger),
            PopulationDrift(settings, self._ledger),
            LedgerVitals(settings, self._ledger, self._reconciler.backlog),
        )
        section = settings.metrics
        return Endpoint(registry, host=section.host, port=section.deliver_port, readiness=self._objection)

    def _objection(self) -> str | None:
        try:
            self._ledger.head()
        except Retryable as error:
            return str(error)
        return None

    def _audit_loops(self) -> Iterator[Loop]:
        audit, export = self._settings.audit, self._export
        if audit.checkpoints:
            checkpointer = Checkpointer(
                Path(audit.checkpoints),
                self._ledger,
                seconds=audit.checkpoint_seconds,
                alarm=export.alarm if export is not None else lambda _: None,
            )
            pause = min(audit.checkpoint_seconds, _AUDIT_SECONDS)
            yield Loop(checkpointer.step, pause, rests=_LOOK)
        if export is not None:
            yield Loop(export.step, _AUDIT_SECONDS)

    def take_reports(self) -> None:
        """Bring commitment reports from the spool, where the node keeps them, to the ledger."""
        for report in self._spool.reports.waiting():
            reach("office.before_report")
            outcome = self._ledger.commitment_reported(report)
            if not outcome.known:
                log.warning("report_of_what_was_not_asked", transaction=report.transaction_uid)
            for proven in outcome.proven:
                tell_proven(proven, "committed")
            for destination, study, sop_instance_uid in outcome.missing:
                metrics.DELIVERIES.labels(destination, "missing").inc()
                log.warning("object_not_held", study=study, object=sop_instance_uid, destination=destination)
            reach("office.after_report")
            self._spool.reports.drop(report.transaction_uid)

    def take_refusals(self) -> None:
        """Bring windows of refusals from the spool, where the node keeps them, to the audit trail."""
        for window in self._spool.refusals.waiting():
            if self._ledger.take_refusals(window):
                log.info("refusals_taken", window=window.name, count=window.count)
            reach("refusals.after_take")
            self._spool.refusals.drop(window)

    def drop_outputs(self) -> None:
        """Remove the bytes of outputs that every destination has answered for."""
        last = 0
        trusted = [one.name for one in self._settings.destinations if one.verify == "none"]
        while waiting := self._ledger.outputs_to_drop(trusted=trusted, limit=_OUTPUTS, after=last):
            last = waiting[-1].output_id
            dropped: list[str] = []
            refused: list[dict[str, str]] = []
            for output in waiting:
                try:
                    self._spool.outbox.drop(output.path)
                except (OSError, ValueError) as error:
                    refused.append({"object": output.sop_instance_uid, "error": type(error).__name__})
                else:
                    dropped.append(output.sop_instance_uid)
            self._ledger.outputs_dropped(dropped)
            if refused:
                log.error("output_not_dropped", **refused[0], objects=len(refused))

    def sweep(self) -> None:
        """Remove what a worker was writing, or kept, and did not live to record."""
        abandoned = self._spool.now() - _ABANDONED
        # The node sweeps when it starts, and that may be in months.
        self._spool.sweep(before=abandoned)
        old = self._spool.outbox.kept(before=abandoned)
        for path in self._ledger.unrecorded_outputs(old):
            try:
                self._spool.outbox.drop(path)
            except OSError as error:
                # Tried again at the next look, and stops no other.
                log.error("output_not_dropped", study=path.parent.name, error=type(error).__name__)
                continue
            log.info("abandoned_output_dropped", study=path.parent.name)


def _ledger_file(settings: Settings) -> dict[str, Path]:
    scheme, _, path = settings.database.url.partition(":///")
    return {"ledger": Path(path)} if scheme.startswith("sqlite") else {}


def repeat(loop: Loop, stop: threading.Event, bell: threading.Event | None = None) -> None:
    """Take a step every `pause` seconds until `stop` is set, and more slowly while steps fail.

    A step that returns True had work, and `gather` seconds go by before the next: then it has more.
    `bell` ends a pause, but neither a longer one nor one after a failure.
    """
    failures, rest, name = 0, loop.pause, loop.step.__qualname__
    metrics.STEP_FAILURES.labels(name)
    while not _rested(
        min(rest * 2**failures, _LONGEST_PAUSE), stop, None if failures or rest > loop.pause else bell
    ):
        began, rest = time.monotonic(), loop.pause
        try:
            if loop.step() is True and loop.gather is not None:
                rest = loop.gather
        except Retryable as error:
            failures = min(failures + 1, 8)
            metrics.STEP_FAILURES.labels(name).inc()
            log.warning("deliver_waits", why=str(error))
        except Exception as error:  # noqa: BLE001 (a task boundary: a loop that ended would never deliver again)
            failures = min(failures + 1, 8)
            metrics.STEP_FAILURES.labels(name).inc()
            log.error("step_failed", step=name, error=type(error).__name__)
        else:
            failures = 0
            metrics.STEP_TIME.labels(name).set_to_current_time()
        rest = max(rest, min(loop.rests * (time.monotonic() - began), _LONGEST_PAUSE))


def _rested(seconds: float, stop: threading.Event, bell: threading.Event | None) -> bool:
    """Rest; return whether to stop."""
    if bell is None:
        return stop.wait(seconds)
    if bell.wait(seconds):
        # Before the step: what is done during it rings for the next.
        bell.clear()
    return stop.is_set()


def run_deliver(settings: Settings, stop: threading.Event) -> None:
    """Deliver and reconcile until `stop` is set.

    Raises:
        ConfigurationError: the database cannot be used.
    """
    with open_ledger(settings, migrate=True) as ledger:
        log.info("deliver_ready", destinations=len(settings.destinations))
        office = Office(settings, ledger)
        with office.endpoint():
            office.run(stop)
