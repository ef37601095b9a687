"""A sender that falls silent is seen, one that is as always is not."""

from __future__ import annotations

import math
import random
import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import event

from tests.worker.build import Clock, settings_in
from tests.worker.ledger.conftest import spooled
from worker.ledger import Ledger, open_ledger
from worker.remembered import Remembered
from worker.senders import silences
from worker.silence import SILENT_BELOW, WINDOWS_HOURS, judge, lower_tail


@pytest.mark.parametrize("observed", [0, 1, 5, 30])
@pytest.mark.parametrize("mean", [0.5, 4.0, 30.0])
def test_lower_tail_is_that_of_poisson(observed, mean):
    """The tail is the sum of the terms, by their definition."""
    by_hand = sum(mean**k * math.exp(-mean) / math.factorial(k) for k in range(observed + 1))
    assert lower_tail(observed, mean) == pytest.approx(by_hand, rel=1e-9)


def test_a_large_volume_needs_no_large_numbers():
    """The tail of a sender with thousands of studies is a number."""
    assert lower_tail(0, 5000.0) == 0.0
    assert lower_tail(5000, 5000.0) == pytest.approx(0.504, abs=0.01)


def test_a_busy_sender_is_missed_after_an_hour():
    """Thirty an hour for weeks and now none is no chance."""
    found = judge({1: [0, 31, 28, 30, 35], 4: [95, 120, 118, 122, 125]})
    assert found is not None
    assert (found.hours, found.observed, found.usual) == (1, 0, 30.5)
    assert found.probability < SILENT_BELOW


def test_a_rare_sender_is_given_time():
    """One study an hour may well be none in an hour; none in a day is silence."""
    assert judge({1: [0, 1, 1, 2, 1]}).probability > SILENT_BELOW
    assert judge({1: [0, 1, 1, 2, 1], 24: [0, 24, 25, 22, 26]}).probability < SILENT_BELOW


def test_one_holiday_in_the_past_moves_nothing():
    """A week without studies does not make silence usual, nor a campaign the usual a silence."""
    assert judge({1: [0, 0, 30, 31, 29, 30]}).probability < SILENT_BELOW
    assert judge({1: [28, 300, 30, 31, 29, 30]}).probability > SILENT_BELOW


def test_nothing_is_usual_at_the_beginning():
    """With less than three weeks of history nobody is judged."""
    assert judge({1: [0, 30, 30]}) is None


def test_who_varies_as_poisson_is_rarely_called_silent():
    """Of 2,000 looks at a sender that is as always, less than one in a hundred says silence."""
    dice = random.Random(4)

    def poisson(mean: float) -> int:
        limit, count, product = math.exp(-mean), 0, dice.random()
        while product > limit:
            count, product = count + 1, product * dice.random()
        return count

    looks = [judge({1: [poisson(12.0) for _ in range(9)]}) for _ in range(2000)]
    alarms = sum(one is not None and one.probability < SILENT_BELOW for one in looks)
    assert alarms < 20


@pytest.fixture
def history(tmp_path):
    """A ledger in which CT1 sent six studies every day at noon for five weeks, and a clock at its end."""
    settings = settings_in(tmp_path, node={"allowed_callers": ["MODALITY"]})
    clock = Clock()
    end = clock.now
    with open_ledger(settings, migrate=True, clock=clock) as ledger:
        for day in range(35, 0, -1):
            for number in range(6):
                clock.now = end - timedelta(days=day) + timedelta(minutes=30 + number)
                study = f"1.2.{day}.{number}"
                ledger.register(study, [spooled(study, f"{study}.1")])
        clock.now = end
        yield settings, ledger, clock


def test_the_ledger_knows_what_is_usual(history):
    """Counted over the same hours of earlier weeks; a sender that the settings do not name is `other`."""
    settings, ledger, clock = history
    assert isinstance(ledger, Ledger)
    (counts,) = ledger.volumes(WINDOWS_HOURS, weeks=8).values()
    assert counts[24] == [6, 6, 6, 6, 6]
    clock.pass_by(30 * 3600)
    (silence,) = silences(settings, ledger).values()
    assert (silence.hours, silence.observed, silence.usual) == (12, 0, 6.0)
    named = ledger.volumes(WINDOWS_HOURS, weeks=8, without=list(ledger.volumes([24], weeks=8)))
    assert named == {}


def test_the_database_counts(tmp_path):
    """However many studies came, a row a sender and week leaves the database."""
    asked, clock = [], Clock()
    with open_ledger(settings_in(tmp_path), migrate=True, clock=clock) as ledger:
        for number in range(500):
            study, sender = f"1.2.{number}", f"CT{number % 3}"
            image = replace(spooled(study, f"{study}.1"), calling_ae=sender)
            # A second image counts nothing, unless it is of another sender.
            other = replace(spooled(study, f"{study}.2"), calling_ae="CT0" if number < 30 else sender)
            ledger.register(study, [image, other])
            clock.pass_by({0: 86_400, 249: 168 * 3600 - 249}.get(number, 1))

        def note(connection, cursor, statement, parameters, *_):
            if "FROM" in statement:
                asked.append((statement, parameters))

        event.listen(ledger._engine, "before_cursor_execute", note)
        counts = ledger.volumes([1, 4], weeks=1, without=["CT2"])
        event.remove(ledger._engine, "before_cursor_execute", note)
        with ledger._reading() as connection:
            fetched = [connection.exec_driver_sql(*one).all() for one in asked]
    assert counts == {"CT0": {1: [83, 103], 4: [83, 103]}, "CT1": {1: [84, 83], 4: [84, 83]}}
    assert sum(map(len, fetched)) <= 1 + 2 * 2


def test_nobody_waits_for_who_asks():
    """While one thread asks anew, another has the last answer."""
    asking, answer = threading.Event(), threading.Event()
    answers = iter([1, 2])

    def ask():
        number = next(answers)
        if number == 2:
            asking.set()
            assert answer.wait(30)
        return number

    remembered = Remembered(ask, 0.0)
    assert remembered() == 1
    told = []
    first = threading.Thread(target=lambda: told.append(remembered()))
    first.start()
    assert asking.wait(30)
    second = threading.Thread(target=lambda: told.append(remembered()), daemon=True)
    second.start()
    second.join(10)
    assert told == [1]
    answer.set()
    first.join(30)
    assert told == [1, 2]
