"""A claim lives as long as its worker does something, and no longer."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.dicom_node.build import eventually
from tests.worker.build import claimed, settings_in
from worker.lease import Lease
from worker.ledger import open_ledger

LENGTH = timedelta(seconds=0.6)
LONG = timedelta(hours=1)


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(settings_in(tmp_path), migrate=True) as ledger:
        yield ledger


def lease_until(ledger):
    return ledger.study("1.2").jobs[-1].lease_until


def test_claim_is_extended_while_the_block_runs(ledger):
    """Within the block the lease moves on, again and again."""
    claim = claimed(ledger, "1.2", lease=LENGTH.total_seconds())
    with Lease(ledger, claim, LENGTH, maximum=LONG):
        for _ in range(2):
            before = lease_until(ledger)
            eventually(lambda before=before: lease_until(ledger) > before)


def test_claim_ends_with_the_block(ledger):
    """After the block another worker gets the study as soon as the lease has lapsed."""
    claim = claimed(ledger, "1.2", lease=LENGTH.total_seconds())
    with Lease(ledger, claim, LENGTH, maximum=LONG):
        pass
    eventually(lambda: ledger.claim("1.2", worker="w2", lease=LONG, maximum_attempts=3))


def test_worker_that_hangs_loses_its_claim(ledger):
    """Past the longest time another worker gets the study although the block never ends."""
    claim = claimed(ledger, "1.2", lease=LENGTH.total_seconds())
    with Lease(ledger, claim, LENGTH, maximum=LENGTH):
        eventually(lambda: ledger.claim("1.2", worker="w2", lease=LONG, maximum_attempts=3))
