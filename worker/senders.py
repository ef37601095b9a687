"""The senders that people know by name, and whether one of them has fallen silent."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dicom_node.errors import Retryable
from dicom_node.metrics import OTHER
from worker.ledger import Ledger
from worker.remembered import Remembered
from worker.settings import Settings
from worker.silence import WEEKS, WINDOWS_HOURS, Silence, judge

_SECONDS = 60.0


def silences(settings: Settings, ledger: Ledger) -> dict[str, Silence]:
    """Every sender of the settings, and all others as one, that has sent for some weeks.

    The heartbeat is none of them.

    Raises:
        Retryable: the database is away or busy.
    """
    known = settings.node.caller_titles
    found: dict[str, dict[int, list[int]]] = {}
    volumes = ledger.volumes(WINDOWS_HOURS, weeks=WEEKS, without=(settings.heartbeat.calling_ae,))
    for sender, counts in volumes.items():
        told = found.setdefault(sender if sender in known else OTHER, {})
        for hours, studies in counts.items():
            before = told.get(hours, [0] * len(studies))
            told[hours] = [a + b for a, b in zip(before, studies, strict=True)]
    judged = {sender: judge(counts) for sender, counts in found.items()}
    return {sender: one for sender, one in sorted(judged.items()) if one is not None}


class SenderSilence(Collector):
    """Asked at a scrape, at most once a minute."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._ask = Remembered(lambda: silences(settings, ledger), _SECONDS)

    def collect(self) -> Iterator[Metric]:
        """A sender is here once it is known for some weeks; nobody is while the database is away."""
        probability = GaugeMetricFamily(
            "covariance_sender_silence_probability",
            "That so few studies come by chance, were all as usual for this hour of this weekday.",
            labels=("sender",),
        )
        observed = GaugeMetricFamily(
            "covariance_sender_silence_observed_studies",
            "Studies within the hours that speak most for silence.",
            labels=("sender",),
        )
        usual = GaugeMetricFamily(
            "covariance_sender_silence_usual_studies",
            "Median of the same hours in earlier weeks.",
            labels=("sender",),
        )
        hours = GaugeMetricFamily(
            "covariance_sender_silence_hours", "How many hours these are.", labels=("sender",)
        )
        try:
            found = self._ask()
        except Retryable:
            found = {}
        for sender, one in found.items():
            probability.add_metric((sender,), one.probability)
            observed.add_metric((sender,), one.observed)
            usual.add_metric((sender,), one.usual)
            hours.add_metric((sender,), one.hours)
        yield from (probability, observed, usual, hours)
