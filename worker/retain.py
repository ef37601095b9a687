"""Retention: received films whose results are proven and that are old enough leave the spool.

Recorded first, removed after: a crash in between leaves files that are known to go, and the next look
finishes it. A full disk makes nothing go earlier: the node then answers A700.
"""

from __future__ import annotations

from datetime import timedelta
from itertools import groupby

from dicom_node.logs import get_logger
from dicom_node.spool import Spool
from worker.ledger import LeavingFile, Ledger, PurgeableStudy, PurgeRule
from worker.ledger.store import Clock, utcnow
from worker.settings import Settings

log = get_logger("retain")

_STUDIES = 200
"""Studies in one transaction: the workers write in between."""
_FILES = 1000


class Retainer:
    """Lets go what nobody can ask for again, and nothing else."""

    def __init__(self, settings: Settings, ledger: Ledger, *, clock: Clock = utcnow) -> None:
        self._retention = settings.retention
        self._trusted = tuple(one.name for one in settings.destinations if one.verify == "none")
        self._spool = Spool(settings.spool.path)
        self._ledger = ledger
        self._clock = clock

    def step(self) -> None:
        """Finish what was begun and, where retention is on, purge."""
        self.finish()
        if self._retention.enabled:
            self.purge()

    def candidates(self) -> list[PurgeableStudy]:
        """Every study that may go now, those that came first at the front.

        None that the spool holds an unregistered image of: that will want the others beside it.
        """
        found = self._ledger.purgeable(self._rule())
        return [one for one in found if self._is_registered(one.study_instance_uid)]

    def purge(self) -> int:
        """Let everything go that may; return how many files it was."""
        going = [one.study_instance_uid for one in self.candidates()]
        files = 0
        for start in range(0, len(going), _STUDIES):
            files += self._ledger.purge(going[start : start + _STUDIES], self._rule())
            self.finish()
        if files:
            log.info("films_purged", files=files)
        return files

    def finish(self) -> None:
        """Remove the files of which it is recorded that they go."""
        while True:
            leaving = self._ledger.leaving(limit=_FILES)
            gone: list[LeavingFile] = []
            for _, files in groupby(leaving, key=lambda one: one.path.parent):
                gone += self._remove(list(files))
            self._ledger.removed(gone)
            if not gone:
                return

    def _remove(self, files: list[LeavingFile]) -> list[LeavingFile]:
        try:
            self._spool.remove([one.path for one in files])
        except (OSError, ValueError) as error:
            # Recorded as going: it is tried again at every look, and stops no other study.
            log.error("film_not_removed", study=files[0].path.parent.name, error=type(error).__name__)
            return []
        return files

    def _is_registered(self, study_instance_uid: str) -> bool:
        kept = self._ledger.registered(study_instance_uid)
        return len(self._spool.instances(study_instance_uid)) <= kept

    def _rule(self) -> PurgeRule:
        return PurgeRule(
            received_before=self._clock() - timedelta(days=self._retention.keep_days),
            trusted=self._trusted,
            quarantined=self._retention.quarantined,
        )
