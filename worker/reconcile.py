"""The reconciler rings again for what is ready and unannounced, so that an emptied broker loses nothing."""

from __future__ import annotations

from datetime import datetime, timedelta

from dicom_node.dispatch import Dispatcher
from dicom_node.lanes import Lane, most_urgent
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
        self._opened: dict[str, float] = {}
        self._rung: dict[str, datetime] = {}
        self._lanes: dict[str, tuple[tuple[int, int] | None, Lane]] = {}
        self._forgotten: list[tuple[SpooledStudy, Lane]] = []

    def step(self) -> int:
        """Ring for every study that waits unannounced, in its lane; return how many.

        An empty queue announces nothing. While it holds messages the workers have enough to do, and
        ringing for a backlog at every look would only make it grow: then only what has waited long is
        rung for, some at a look and each once a minute, because its message may be lost all the same.
        """
        depths, now = self._dispatcher.depths(), self._clock()
        metrics.BROKER_UP.set(depths is not None)
        self._forgotten = self._unregistered(now)
        if depths is None:
            # Nobody hears a ring; how much waits is to be seen all the same.
            return 0
        self._rung = {uid: at for uid, at in self._rung.items() if now - at < _REMEMBERED}
        waiting = self._ledger.announceable()
        waiting |= {study.study_instance_uid: lane for study, lane in self._forgotten}
        overdue = set(self._ledger.announceable(waited=_PATIENCE))
        by = now - _PATIENCE
        overdue |= {study.study_instance_uid for study, _ in self._forgotten if self._released(study, by)}
        rung = 0
        for lane, depth in depths.items():
            metrics.MESSAGES.labels(lane).set(depth)
            mine = [uid for uid, one in waiting.items() if one is lane]
            rung += self._ring(lane, self._unannounced(mine, overdue, depth), now)
        if rung:
            metrics.ANNOUNCED_AGAIN.inc(rung)
            log.info("studies_announced_again", studies=rung, queue=sum(depths.values()))
        return rung

    def _unannounced(self, mine: list[str], overdue: set[str], depth: int) -> list[str]:
        if not depth:
            return mine
        # With a message for each study that waits, and some more, none is without one for long. Backfill
        # waits for hours, and its queue must not grow by the minute.
        room = max(min(_BATCH, len(mine) + _BATCH - depth), 0)
        return [uid for uid in mine if uid in overdue and uid not in self._rung][:room]

    def _ring(self, lane: Lane, studies: list[str], now: datetime) -> int:
        for rung, study_instance_uid in enumerate(studies):
            if not self._dispatcher.ring(study_instance_uid, lane):
                return rung
            self._rung[study_instance_uid] = now
        return len(studies)

    def _unregistered(self, by: datetime) -> list[tuple[SpooledStudy, Lane]]:
        # By number and time of the files: two may share a time, and one that was purged may come again.
        found = list(self._spool.studies())
        seen = {study.study_instance_uid for study in found}
        self._settled = {uid: state for uid, state in self._settled.items() if uid in seen}
        changed = [one for one in found if self._settled.get(one.study_instance_uid) != _state(one)]
        # A late image opens a study anew, as it does at the node: its first one may be years old.
        now = by.timestamp()
        self._opened = {
            uid: self._opened.get(uid, now) for uid in (study.study_instance_uid for study in changed)
        }
        open_questions = [study for study in changed if self._released(study, by)]
        registered = self._ledger.registered_counts([study.study_instance_uid for study in open_questions])
        waiting: list[SpooledStudy] = []
        for study in open_questions:
            if registered.get(study.study_instance_uid, 0) < study.instances:
                waiting.append(study)
            else:
                # Nothing more to ask the ledger until another file arrives.
                self._settled[study.study_instance_uid] = _state(study)
        self._lanes = {
            study.study_instance_uid: self._lanes.get(study.study_instance_uid, (None, Lane.ROUTINE))
            for study in waiting
        }
        return [(study, self._lane(study)) for study in waiting]

    def _lane(self, study: SpooledStudy) -> Lane:
        uid = study.study_instance_uid
        state, lane = self._lanes[uid]
        if state != _state(study):
            # A backlog of thousands is looked at every few seconds: its files are opened once.
            try:
                lane = most_urgent(one.lane for one in self._spool.instances(uid))
                self._lanes[uid] = (_state(study), lane)
            except OSError as error:
                log.error("study_unreadable", study=uid, error=type(error).__name__)
        return lane

    def backlog(self) -> dict[Lane, Backlog]:
        """Complete studies that no worker has registered, by lane, as of the last look."""
        now = self._clock().timestamp()
        backlogs = {}
        for lane in Lane:
            last = [study.last_ns for study, one in self._forgotten if one is lane]
            age = now - min(last) / 1e9 if last else 0.0
            backlogs[lane] = Backlog(studies=len(last), seconds=max(age, 0.0))
        return backlogs

    def _released(self, study: SpooledStudy, by: datetime) -> bool:
        seconds = (by - _GRACE).timestamp()
        opened = self._opened.get(study.study_instance_uid, study.first_ns / 1e9)
        quiet, open_for = seconds - study.last_ns / 1e9, seconds - opened
        return quiet >= self._assembly.quiet_seconds or open_for >= self._assembly.cap_seconds


def _state(study: SpooledStudy) -> tuple[int, int]:
    return study.instances, study.last_ns
