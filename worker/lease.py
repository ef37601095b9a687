"""A claim is kept alive while its worker lives, so that a dead worker's study is free after seconds.

And not for ever: a worker may live and hang.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Self

from dicom_node.errors import Retryable
from dicom_node.logs import get_logger
from worker.ledger import Claim, Ledger

log = get_logger("lease")


class Lease:
    """Extends the lease of a claim every third of its length, until the block ends or `maximum` has passed.

    It is no lock: a worker that was stopped past its lease is told so by the fence when it records.
    """

    def __init__(self, ledger: Ledger, claim: Claim, length: timedelta, *, maximum: timedelta) -> None:
        self._ledger = ledger
        self._claim = claim
        self._length = length
        self._maximum = maximum
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._extend, name="lease", daemon=True)

    def _extend(self) -> None:
        given_up_at = time.monotonic() + self._maximum.total_seconds()
        while not self._done.wait(self._length.total_seconds() / 3):
            if time.monotonic() >= given_up_at:
                log.error("claim_given_up", study=self._claim.study_instance_uid, after=str(self._maximum))
                return
            try:
                if not self._ledger.extend(self._claim, lease=self._length):
                    return
            except Retryable as error:
                log.warning("lease_not_extended", study=self._claim.study_instance_uid, why=str(error))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
