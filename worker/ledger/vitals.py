"""What waits, how much of it and for how long: asked again and again, and so by indexes alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from dicom_node.lanes import Lane
from worker.ledger.audit import ChainHead, read_head
from worker.ledger.models import Delivery, DeliveryState, Job, JobState
from worker.ledger.store import Store

_OPEN = (DeliveryState.DUE, DeliveryState.STORED, DeliveryState.FAILED, DeliveryState.PARKED)
_UNPROVEN = (DeliveryState.DUE, DeliveryState.STORED)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Rows in one state."""

    count: int = 0
    seconds: float = 0.0
    """Age of the oldest; 0 where there is none."""


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """The state of the ledger now."""

    jobs: Mapping[JobState, Waiting]
    """`claimed` since their claim, `quarantined` since their end."""
    ready: Mapping[Lane, Waiting]
    """Jobs that wait for a worker, by lane, since they were made."""
    deliveries: Mapping[str, Mapping[DeliveryState, Waiting]]
    """By destination, of those that are not proven yet; since their result was recorded."""
    head: ChainHead

    def unproven(self, destination: str) -> float:
        """Seconds since the oldest result was recorded that the destination has not proven; 0: none."""
        return max((self.deliveries[destination][state].seconds for state in _UNPROVEN), default=0.0)


class VitalSigns(Store):
    """Raises Retryable when the database is away or busy."""

    def vitals(self, destinations: Sequence[str], *, trusted: Collection[str] = ()) -> Vitals:
        """Ask what waits; stored is enough at the `trusted` destinations."""
        with self._reading() as connection:
            now = self._now(connection)
            jobs = {
                JobState.CLAIMED: _jobs(connection, JobState.CLAIMED, now),
                JobState.QUARANTINED: _jobs(connection, JobState.QUARANTINED, now),
            }
            deliveries = {one: _deliveries(connection, one, now, one in trusted) for one in destinations}
            ready = _ready(connection, now)
            return Vitals(jobs=jobs, ready=ready, deliveries=deliveries, head=read_head(connection))


def _ready(connection: Connection, now: datetime) -> dict[Lane, Waiting]:
    ready = select(Job.lane, func.count(), func.min(Job.created_at)).where(Job.state == JobState.READY)
    waiting = {lane: Waiting() for lane in Lane}
    for lane, count, oldest in connection.execute(ready.group_by(Job.lane)):
        before, one = waiting[lane or Lane.ROUTINE], _waiting(count, oldest, now)
        both = Waiting(count=before.count + one.count, seconds=max(before.seconds, one.seconds))
        waiting[lane or Lane.ROUTINE] = both
    return waiting


def _jobs(connection: Connection, state: JobState, now: datetime) -> Waiting:
    since = {JobState.CLAIMED: Job.claimed_at, JobState.QUARANTINED: Job.finished_at}[state]
    count, oldest = connection.execute(select(func.count(), func.min(since)).where(Job.state == state)).one()
    return _waiting(count, oldest, now)


def _deliveries(
    connection: Connection, destination: str, now: datetime, is_trusted: bool
) -> dict[DeliveryState, Waiting]:
    states = [state for state in _OPEN if not (is_trusted and state is DeliveryState.STORED)]
    rows = connection.execute(
        select(Delivery.state, func.count(), func.min(Delivery.created_at))
        .where(Delivery.destination == destination, Delivery.state.in_(states))
        .group_by(Delivery.state)
    ).all()
    found = {state: _waiting(count, oldest, now) for state, count, oldest in rows}
    return {state: found.get(state, Waiting()) for state in _OPEN}


def _waiting(count: int, oldest: datetime | None, now: datetime) -> Waiting:
    return Waiting(count=count, seconds=max((now - oldest).total_seconds(), 0.0) if oldest else 0.0)
