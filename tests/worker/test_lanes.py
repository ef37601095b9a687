"""The order in which a worker takes messages, and the share of backfill."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dicom_node.dispatch import QUEUES
from dicom_node.lanes import Lane
from worker.lanes import Backfill, LaneOrder, backfill_places

STAT, ROUTINE, BACKFILL = QUEUES.values()


@pytest.fixture
def backfill():
    return Backfill(1)


@pytest.fixture
def order(backfill):
    made = LaneOrder(backfill)
    made.update([BACKFILL, STAT, ROUTINE])
    return made


def received(backfill, lane, message_id):
    backfill._received(SimpleNamespace(id=message_id, delivery_info={"routing_key": QUEUES[lane]}))


@pytest.mark.parametrize(
    ("concurrency", "share", "places"),
    [(1, 0.5, 1), (1, 1.0, 1), (2, 0.5, 1), (2, 1.0, 1), (4, 0.5, 2), (5, 0.5, 2), (8, 0.1, 1), (8, 1.0, 7)],
)
def test_a_place_is_left_for_others(concurrency, share, places):
    """Backfill has one place at least, and never all of them where there are two."""
    assert backfill_places(concurrency, share) == places


def test_urgent_is_asked_for_first(order):
    """Then routine, then backfill, whatever the order in which the queues were declared."""
    assert order.consume(3) == [STAT, ROUTINE, BACKFILL]


def test_backfill_is_not_asked_for_while_its_places_are_taken(order, backfill):
    """From the arrival of its message to the end of its study; studies of other lanes take none."""
    received(backfill, Lane.STAT, "a")
    received(backfill, Lane.ROUTINE, "b")
    assert BACKFILL in order.consume(3)
    received(backfill, Lane.BACKFILL, "c")
    assert order.consume(3) == [STAT, ROUTINE]
    backfill.ended("a")
    assert order.consume(3) == [STAT, ROUTINE]
    backfill.ended("c")
    assert order.consume(3) == [STAT, ROUTINE, BACKFILL]


def test_no_lane_waits_for_ever(order):
    """Behind an urgent queue that never empties, the others get one message in twenty, by turns."""
    first = []
    for _ in range(80):
        first.append(order.consume(3)[0])
        order.rotate(first[-1])
    assert {queue: first.count(queue) for queue in (STAT, ROUTINE, BACKFILL)} == {
        STAT: 76,
        ROUTINE: 2,
        BACKFILL: 2,
    }


def test_a_channel_without_our_queues_asks_for_nothing(backfill):
    """Celery has channels of its own, for commands to workers."""
    assert LaneOrder(backfill).consume(0) == []
