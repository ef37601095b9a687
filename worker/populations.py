"""Drift of scores and abstentions, as metrics: from the ledger, and at most once in five minutes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dicom_node.errors import Retryable
from dicom_node.metrics import OTHER
from worker.drift import Drift, Seen, drift
from worker.ledger import Ledger
from worker.remembered import Remembered
from worker.settings import Settings

_SECONDS = 300.0
_FIRST, _LAST = 1000, 500
"""Studies of the reference, and of now."""


def drifts(settings: Settings, ledger: Ledger) -> list[Drift]:
    """Every group of images that the last studies hold; the heartbeat is in none.

    Raises:
        Retryable: the database is away or busy.
    """
    known = settings.node.caller_titles
    without = settings.heartbeat.calling_ae
    reference, current = ledger.populations(first=_FIRST, last=_LAST, without=without)
    return drift(_named(reference, known), _named(current, known))


def _named(images: Sequence[Seen], known: Sequence[str]) -> list[Seen]:
    return [one if one.sender in known else replace(one, sender=OTHER) for one in images]


class PopulationDrift(Collector):
    """Groups with too few images have no PSI; nobody has one while the database is away."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._ask = Remembered(lambda: drifts(settings, ledger), _SECONDS)

    def collect(self) -> Iterator[Metric]:
        """By sender, manufacturer and view."""
        labels = ("by", "group")
        score = GaugeMetricFamily(
            "covariance_score_psi",
            "Scores of the last studies against the model's first ones.",
            labels=labels,
        )
        abstention = GaugeMetricFamily(
            "covariance_abstention_psi", "What is not scored, and why, likewise.", labels=labels
        )
        images = GaugeMetricFamily("covariance_drift_images", "Images of the last studies.", labels=labels)
        try:
            found = self._ask()
        except Retryable:
            found = []
        for one in found:
            group = (one.by, one.group)
            images.add_metric(group, one.images)
            if one.score_psi is not None:
                score.add_metric(group, one.score_psi)
            if one.abstention_psi is not None:
                abstention.add_metric(group, one.abstention_psi)
        yield from (score, abstention, images)
