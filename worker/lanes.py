"""In which order a worker takes from the queues of the lanes, and how much of it backfill may have.

A worker asks the broker for one message whenever a place is free, with a list of queues, and gets it
from the first that holds one (BRPOP). That list is all there is to decide: urgent before routine
before backfill, and no backfill while its places are taken. What runs is not interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from celery.signals import task_received

from dicom_node.dispatch import QUEUES
from dicom_node.lanes import Lane

_FROM_THE_OTHER_END = 20
"""One message in so many is taken from the least urgent lane first, so that no lane waits for ever behind
others that never empty. An urgent study waits so at most for one more study, once in so many."""

_LOOK_SECONDS = 0.2
"""Seconds after which the list is made anew while no message comes: backfill's free place is seen then."""


def backfill_places(concurrency: int, share: float) -> int:
    """How many studies of backfill a worker may score at the same time."""
    return max(1, min(math.floor(concurrency * share), concurrency - 1))


class Backfill:
    """The studies of backfill that this worker has in hand."""

    def __init__(self, places: int) -> None:
        self._places = places
        # By the id of the message: set operations are atomic, and its end may be told twice.
        self._held: set[str] = set()
        task_received.connect(self._received, weak=False)

    def _received(self, request: Any, **_: object) -> None:
        # Between the message's arrival and the next question to the broker: the thread may start later.
        if request.delivery_info.get("routing_key") == QUEUES[Lane.BACKFILL]:
            self._held.add(request.id)

    def ended(self, message_id: str) -> None:
        """A study is scored, of whichever lane."""
        self._held.discard(message_id)

    @property
    def may_have_more(self) -> bool:
        """Whether one of its places is free."""
        return len(self._held) < self._places


class LaneOrder:
    """Says which queues to ask, in order: a `queue_order_strategy` of kombu, one for each of its channels."""

    def __init__(self, backfill: Backfill) -> None:
        self._backfill = backfill
        self._queues: list[str] = []
        self._taken = 0

    def update(self, queues: Sequence[str]) -> None:
        """Take over what the channel consumes."""
        self._queues = list(queues)

    def consume(self, count: int) -> list[str]:  # noqa: ARG002 (the protocol of kombu)
        """The queues to ask now."""
        lanes = [lane for lane in Lane if lane is not Lane.BACKFILL or self._backfill.may_have_more]
        turns, left = divmod(self._taken, _FROM_THE_OTHER_END)
        if left == _FROM_THE_OTHER_END - 1:
            # By turns backfill and routine first: neither waits behind the other for ever.
            lanes.sort(key=lambda lane: lane is Lane.ROUTINE if turns % 2 else lane is not Lane.ROUTINE)
            lanes.sort(key=lambda lane: lane is Lane.STAT)
        return [QUEUES[lane] for lane in lanes if QUEUES[lane] in self._queues]

    def rotate(self, queue: str) -> None:  # noqa: ARG002 (the protocol of kombu)
        """A message was taken."""
        self._taken += 1


def transport_options(backfill: Backfill) -> dict[str, Any]:
    """What kombu is to be told."""
    return {"queue_order_strategy": lambda: LaneOrder(backfill), "polling_interval": _LOOK_SECONDS}
