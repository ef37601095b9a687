"""Whose clock is right: all who share a ledger see one time, and one that is set back holds nothing up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.worker.ledger.conftest import spooled
from worker.ledger import open_ledger

DAY = timedelta(days=1).total_seconds()


@pytest.fixture
def astray(monkeypatch):
    """This machine's clock is a day ahead of everybody's."""
    monkeypatch.setattr("worker.ledger.store.utcnow", lambda: datetime.now(UTC) + timedelta(days=1))


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_machine_with_a_clock_of_its_own_takes_no_claim(settings, astray):
    """On PostgreSQL a lease is judged by the database's clock, whatever the time of whoever asks."""
    with open_ledger(settings, migrate=False) as ledger:
        ledger.register("1.2", [spooled("1.2", "1.2.1")])
        claim = ledger.claim("1.2", worker="w1", lease=timedelta(hours=1), maximum_attempts=3)
        until = ledger.study("1.2").jobs[0].lease_until
    assert claim is not None
    assert abs(until - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=5)


def test_clock_that_is_set_back_keeps_no_dead_claim(ledger, given, clock):
    """A claim that seems to begin tomorrow is free: its worker's lease ran by a clock that was wrong."""
    clock.pass_by(DAY)
    given.claimed("1.2", "1.2.1")
    clock.pass_by(-DAY)
    assert given.try_claim("1.2", worker="w2").fence == 2
    assert given.try_claim("1.2", worker="w3") is None


def test_clock_that_is_set_back_keeps_no_study_waiting(ledger, given, clock):
    """A job that was given back by a clock a day ahead is announced now, not tomorrow."""
    clock.pass_by(DAY)
    ledger.release(
        given.claimed("1.2", "1.2.1"), retry_in=timedelta(seconds=60), sentence="The disk is full."
    )
    clock.pass_by(-DAY)
    assert list(ledger.announceable()) == ["1.2"]


def test_clock_that_is_set_back_keeps_no_delivery_waiting(ledger, given, clock):
    """An object that is due tomorrow, or asked about tomorrow, is sent, and asked about, now."""
    clock.pass_by(DAY)
    delivery = given.due("1.2")
    ledger.delivery_retry(delivery.delivery_id, None, timedelta(hours=1))
    clock.pass_by(-DAY)
    assert delivery.delivery_id in {due.delivery_id for due in ledger.due_deliveries("pacs", 10)}
    clock.pass_by(DAY)
    ledger.deliveries_sent({delivery.delivery_id: 0x0000})
    ledger.request_commitment([delivery.delivery_id], "2.25.1", timedelta(seconds=60))
    assert ledger.stored_unverified("pacs", 10) == []
    clock.pass_by(-DAY)
    assert [one.delivery_id for one in ledger.stored_unverified("pacs", 10)] == [delivery.delivery_id]
