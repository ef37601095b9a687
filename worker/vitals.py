"""What stands in the ledger, as metrics: asked when somebody scrapes, and at most once in ten seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dicom_node.errors import Retryable
from dicom_node.lanes import Lane
from worker.ledger import JobState, Ledger, Vitals
from worker.remembered import Remembered
from worker.settings import Settings

_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Complete studies in the spool that no worker has registered yet."""

    studies: int = 0
    seconds: float = 0.0
    """Since the last image of the one that waits longest."""


class LedgerVitals(Collector):
    """Queue, claims and deliveries of the whole installation, whichever workers there are."""

    def __init__(
        self, settings: Settings, ledger: Ledger, backlog: Callable[[], Mapping[Lane, Backlog]]
    ) -> None:
        names = [one.name for one in settings.destinations]
        trusted = [one.name for one in settings.destinations if one.verify == "none"]
        self._backlog = backlog
        self._ask = Remembered(lambda: ledger.vitals(names, trusted=trusted), _SECONDS)

    def collect(self) -> Iterator[Metric]:
        """All of it, or `covariance_ledger_up 0` while the database is away."""
        up = GaugeMetricFamily("covariance_ledger_up", "1 while the database answers.")
        try:
            vitals = self._ask()
        except Retryable:
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield up
        yield from self._queue(vitals)
        yield from _deliveries(vitals)
        yield GaugeMetricFamily(
            "covariance_audit_events", "Length of the audit trail.", value=vitals.head.events
        )

    def _queue(self, vitals: Vitals) -> Iterator[Metric]:
        backlogs, claimed = self._backlog(), vitals.jobs[JobState.CLAIMED]
        studies = GaugeMetricFamily(
            "covariance_queue_studies", "Complete studies that wait for a worker.", labels=("lane",)
        )
        age = GaugeMetricFamily(
            "covariance_queue_age_seconds",
            "How long the study that waits longest for a worker has waited; 0 where none waits.",
            labels=("lane",),
        )
        for lane, ready in vitals.ready.items():
            # A study whose worker never came has no job: the spool knows of it.
            backlog = backlogs.get(lane, Backlog())
            studies.add_metric((lane.value,), backlog.studies + ready.count)
            age.add_metric((lane.value,), max(backlog.seconds, ready.seconds))
        yield studies
        yield age
        yield GaugeMetricFamily(
            "covariance_studies_claimed", "Studies that a worker has claimed.", value=claimed.count
        )
        yield GaugeMetricFamily(
            "covariance_claim_age_seconds",
            "Age of the oldest claim; 0 where there is none.",
            value=claimed.seconds,
        )
        yield GaugeMetricFamily(
            "covariance_studies_quarantined",
            "Studies that wait for people.",
            value=vitals.jobs[JobState.QUARANTINED].count,
        )


def _deliveries(vitals: Vitals) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "covariance_deliveries_waiting",
        "Objects that are not proven yet, by state (due, stored) or set aside (failed, parked).",
        labels=("destination", "state"),
    )
    oldest = GaugeMetricFamily(
        "covariance_oldest_unproven_seconds",
        "Since the oldest result was recorded that the destination has not proven; 0 where there is none.",
        labels=("destination",),
    )
    for destination, states in vitals.deliveries.items():
        for state, one in states.items():
            waiting.add_metric((destination, state.value), one.count)
        oldest.add_metric((destination,), vitals.unproven(destination))
    yield waiting
    yield oldest
