"""The reconciler rings again for what is ready and unannounced, so that an emptied broker loses nothing."""

from __future__ import annotations

import time

from dicom_node.dispatch import Dispatcher
from dicom_node.logs import get_logger
from dicom_node.settings import AssemblySection
from dicom_node.spool import Spool, SpooledStudy
from worker.ledger import Ledger

log = get_logger("reconcile")

_GRACE_SECONDS = 1.0
"""The node rings first: only a study that has waited this much longer is taken as unannounced."""


class Reconciler:
    """Compares the spool (what came in) and the ledger (what was done) with the doorbell."""

    def __init__(
        self, *, assembly: AssemblySection, spool: Spool, ledger: Ledger, dispatcher: Dispatcher
    ) -> None:
        self._assembly = assembly
        self._spool = spool
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._settled: dict[str, int] = {}

    def step(self) -> int:
        """Ring for every study that waits although the queue is empty; return how many.

        While the queue holds messages the workers have enough to do, and ringing for a backlog at
        every look would only make the queue grow.
        """
        if self._dispatcher.depth() != 0:
            return 0
        unannounced = dict.fromkeys((*self._ledger.announceable(), *self._unregistered()))
        rung = 0
        for study_instance_uid in unannounced:
            if not self._dispatcher.ring(study_instance_uid):
                break
            rung += 1
        if rung:
            log.info("studies_announced_again", studies=rung)
        return rung

    def _unregistered(self) -> list[str]:
        now_ns = time.time_ns()
        waiting = []
        for study in self._spool.studies():
            uid = study.study_instance_uid
            if self._settled.get(uid) == study.last_ns or not self._released(study, now_ns):
                continue
            if self._ledger.registered(uid) >= study.instances:
                # Nothing more to ask the ledger until another file arrives.
                self._settled[uid] = study.last_ns
            else:
                waiting.append(uid)
        return waiting

    def _released(self, study: SpooledStudy, now_ns: int) -> bool:
        quiet = (now_ns - study.last_ns) / 1e9 - _GRACE_SECONDS
        open_for = (now_ns - study.first_ns) / 1e9 - _GRACE_SECONDS
        return quiet >= self._assembly.quiet_seconds or open_for >= self._assembly.cap_seconds
