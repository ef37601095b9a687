"""Retention: received films whose results are proven and that are old enough leave the spool.

Recorded first, removed after: a crash in between leaves files that are known to go, and the next look
finishes it. A full disk makes nothing go earlier: the node then answers A700.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        return [one for page in self._pages() for one in page]

    def purge(self) -> int:
        """Let everything go that may; return how many files it was."""
        files = 0
        for page in self._pages():
            if page:
                studies = [one.study_instance_uid for one in page]
                spooled = [one for study in studies for one in self._spool.instances(study)]
                files += self._ledger.purge(studies, self._rule(), spooled)
                self.finish()
        if files:
            log.info("films_purged", files=files)
        return files

    def finish(self) -> None:
        """Remove the files of which it is recorded that they go.

        One that has come again since stays: the reconciler finds that it is not registered.
        """
        last: LeavingFile | None = None
        while leaving := self._ledger.leaving(limit=_FILES, after=last):
            last = leaving[-1]
            gone: list[LeavingFile] = []
            refused: list[dict[str, str]] = []
            for study, files in groupby(leaving, key=lambda one: one.path.parent.name):
                going = list(files)
                try:
                    self._spool.remove({one.path: one.received_at for one in going})
                except (OSError, ValueError) as error:
                    refused.append({"study": study, "error": type(error).__name__})
                else:
                    gone += going
            self._ledger.removed(gone)
            if refused:
                # Recorded as going: it is tried again at every look, and stops no other study. One line of
                # all: a disk that is read-only refuses thousands every few seconds.
                log.error("film_not_removed", **refused[0], studies=len(refused))

    def _pages(self) -> Iterator[list[PurgeableStudy]]:
        """The candidates, a transaction's worth at a time: the first go before the last are looked at."""
        found = self._ledger.purgeable(self._rule())
        for start in range(0, len(found), _STUDIES):
            page = found[start : start + _STUDIES]
            # Before the spool is: what is registered in between makes a study wait, and never go too early.
            kept = self._ledger.registered_counts([one.study_instance_uid for one in page])
            yield [
                one
                for one in page
                if self._spool.count(one.study_instance_uid) <= kept.get(one.study_instance_uid, 0)
            ]

    def _rule(self) -> PurgeRule:
        return PurgeRule(
            received_before=self._clock() - timedelta(days=self._retention.keep_days),
            trusted=self._trusted,
            quarantined=self._retention.quarantined,
        )
