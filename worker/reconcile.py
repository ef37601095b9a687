"""The reconciler rings again for what is ready and unannounced, so that an emptied broker loses nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice

from dicom_node.dispatch import Dispatcher
from dicom_node.logs import get_logger
from dicom_node.settings import AssemblySection
from dicom_node.spool import Spool, SpooledStudy
from worker import metrics
from worker.ledger import Ledger
from worker.ledger.store import Clock, utcnow
from worker.vitals import Backlog

log = get_logger("reconcile")

_GRACE = timedelta(seconds=1)
"""The node rings first: only a study that has waited this much longer is taken as unannounced."""

_PATIENCE = timedelta(seconds=30)
"""How long a study may wait behind a queue that never empties before it is taken as forgotten."""

_BATCH = 50
"""Studies at one look that are rung for into a queue that holds messages."""

_REMEMBERED = timedelta(seconds=60)
"""How long a ring is given to be heard there."""


class Reconciler:
    """Compares the spool (what came in) and the ledger (what was done) with the doorbell."""

    def __init__(
        self,
        *,
        assembly: AssemblySection,
        spool: Spool,
        ledger: Ledger,
        dispatcher: Dispatcher,
        clock: Clock = utcnow,
    ) -> None:
        self._assembly = assembly
        self._spool = spool
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._clock = clock
        self._settled: dict[str, tuple[int, int]] = {}
        self._rung: dict[str, datetime] = {}
        self._forgotten: list[SpooledStudy] = []

    def step(self) -> int:
        """Ring for every study that waits unannounced; return how many.

        An empty queue announces nothing. While it holds messages the workers have enough to do, and
        ringing for a backlog at every look would only make it grow: then only what has waited long is
        rung for, some at a look and each once a minute, because its message may be lost all the same.
        """
        depth, now = self._dispatcher.depth(), self._clock()
        metrics.BROKER_UP.set(depth is not None)
        if depth is None:
            # Nobody hears a ring; how much waits is to be seen all the same.
            self._unregistered(now)
            return 0
        metrics.MESSAGES.set(depth)
        self._rung = {uid: at for uid, at in self._rung.items() if now - at < _REMEMBERED}
        waiting = self._waiting(now, _PATIENCE) if depth else self._waiting(now, timedelta())
        if depth:
            waiting = list(islice((uid for uid in waiting if uid not in self._rung), _BATCH))
        rung = 0
        for study_instance_uid in waiting:
            if not self._dispatcher.ring(study_instance_uid):
                break
            self._rung[study_instance_uid] = now
            rung += 1
        if rung:
            metrics.ANNOUNCED_AGAIN.inc(rung)
            log.info("studies_announced_again", studies=rung, queue=depth)
        return rung

    def _waiting(self, now: datetime, waited: timedelta) -> list[str]:
        ready = self._ledger.announceable(waited=waited)
        return list(dict.fromkeys((*ready, *self._unregistered(now - waited))))

    def _unregistered(self, by: datetime) -> list[str]:
        # By number and time of the files: two may share a time, and one that was purged may come again.
        found = list(self._spool.studies())
        seen = {study.study_instance_uid for study in found}
        self._settled = {uid: state for uid, state in self._settled.items() if uid in seen}
        open_questions = [
            study
            for study in found
            if self._settled.get(study.study_instance_uid) != (study.instances, study.last_ns)
            and self._released(study, by)
        ]
        if not open_questions:
            self._forgotten = []
            return []
        registered = self._ledger.registered_counts()
        waiting: list[SpooledStudy] = []
        for study in open_questions:
            if registered.get(study.study_instance_uid, 0) < study.instances:
                waiting.append(study)
            else:
                # Nothing more to ask the ledger until another file arrives.
                self._settled[study.study_instance_uid] = (study.instances, study.last_ns)
        self._forgotten = waiting
        return [study.study_instance_uid for study in waiting]

    def backlog(self) -> Backlog:
        """Complete studies that no worker has registered, as of the last look."""
        last = [study.last_ns for study in self._forgotten]
        age = self._clock().timestamp() - min(last) / 1e9 if last else 0.0
        return Backlog(studies=len(last), seconds=max(age, 0.0))

    def _released(self, study: SpooledStudy, by: datetime) -> bool:
        seconds = (by - _GRACE).timestamp()
        quiet, open_for = seconds - study.last_ns / 1e9, seconds - study.first_ns / 1e9
        return quiet >= self._assembly.quiet_seconds or open_for >= self._assembly.cap_seconds
