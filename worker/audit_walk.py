"""Walks along the audit trail all the time, a page at a look: a change in it is seen, not searched for."""

from __future__ import annotations

import time

from dicom_node.logs import get_logger
from worker import metrics
from worker.ledger import ChainHead, Ledger

log = get_logger("audit")

_EVENTS = 2000
"""Events at one look."""
_ROUND_SECONDS = 86_400.0
"""After this long the walk begins anew, if it came to its end: what was sound may have been changed since."""


class AuditWalk:
    """From the first event to the last, then behind new ones, and once a day from the first again."""

    def __init__(self, ledger: Ledger, *, round_seconds: float = _ROUND_SECONDS) -> None:
        self._ledger = ledger
        self._round_seconds = round_seconds
        self._begin()

    def _begin(self) -> None:
        self._head = ChainHead()
        self._began = time.monotonic()
        self._broken = False
        self._ended = False

    def step(self) -> bool:
        """Look at the next events; return whether there may be more.

        Raises:
            Retryable: the database is away or busy.
        """
        # A walk that began anew before its end would never look at what lies behind.
        if self._ended and time.monotonic() - self._began >= self._round_seconds:
            self._begin()
        before = self._head.events
        found = self._ledger.verify_next(self._head, limit=_EVENTS)
        self._head = found.head
        metrics.AUDIT_VERIFIED.set(found.head.events)
        metrics.AUDIT_INTACT.set(found.ok)
        if not found.ok:
            if not self._broken:
                log.error("audit_trail_broken", why=found.sentence)
            self._broken = self._ended = True
            return False
        at_end = found.head.events - before < _EVENTS
        if at_end:
            self._ended = True
            metrics.AUDIT_WALKED.set_to_current_time()
        return not at_end
