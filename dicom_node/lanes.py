"""Lanes: urgent work does not wait behind a backlog, because each lane has a queue of its own."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Lane(StrEnum):
    """Which line a study stands in, the most urgent first."""

    STAT = "stat"
    ROUTINE = "routine"
    BACKFILL = "backfill"


def most_urgent(lanes: Iterable[Lane]) -> Lane:
    """The lane of a study whose images came in several; routine where there is none."""
    found = set(lanes)
    return next((lane for lane in Lane if lane in found), Lane.ROUTINE)
