"""What the node counts, for Prometheus. Labels are few and known beforehand: no UID, nothing of a patient.

Whoever calls may call itself anything: only titles that the settings name become a label, the others
are `other`.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from dicom_node.negotiation import (
    APPLICATION_CONTEXT_UNKNOWN,
    CALLED_AE_UNKNOWN,
    CALLING_AE_UNKNOWN,
    LIMIT_EXCEEDED,
    PROTOCOL_VERSION_UNKNOWN,
    Rejection,
)

OTHER = "other"
"""Every sender that the settings do not name."""

REGISTRY = CollectorRegistry()
"""All that the node's endpoint shows."""

RECEIVED = Counter(
    "covariance_received_objects",
    "C-STORE requests answered, by how it ended (new, duplicate, conflict, refused) and why it was refused.",
    ("sender", "outcome", "reason"),
    registry=REGISTRY,
)
RECEIVED_BYTES = Counter(
    "covariance_received_bytes", "Bytes of the data sets that were filed.", ("sender",), registry=REGISTRY
)
RECEIVE_SECONDS = Histogram(
    "covariance_receive_seconds",
    "From the command of a C-STORE to the status that is answered, the wait for the disk included.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
REJECTED = Counter(
    "covariance_associations_rejected",
    "Associations that were rejected, by reason (PS3.8 Table 9-21).",
    ("reason",),
    registry=REGISTRY,
)
REFUSED_CONNECTIONS = Counter(
    "covariance_connections_refused",
    "Connections closed before an association.",
    ("reason",),
    registry=REGISTRY,
)
ABORTED = Counter(
    "covariance_associations_aborted",
    "Associations that ended otherwise than by release: protocol broken, or connection lost.",
    ("reason",),
    registry=REGISTRY,
)
ASSOCIATIONS = Gauge(
    "covariance_associations_open", "Associations that are established now.", registry=REGISTRY
)
MAXIMUM_ASSOCIATIONS = Gauge(
    "covariance_associations_maximum", "node.maximum_associations.", registry=REGISTRY
)
ASSEMBLING = Gauge(
    "covariance_studies_assembling", "Studies that wait for their quiet period.", registry=REGISTRY
)
RELEASED = Counter(
    "covariance_studies_released",
    "Studies taken as complete; not announced ones are found by the reconciler.",
    ("announced",),
    registry=REGISTRY,
)

MINIMUM_FREE = Gauge(
    "covariance_spool_minimum_free_bytes",
    "spool.minimum_free_bytes: with less free every C-STORE is answered A700.",
    registry=REGISTRY,
)

_REJECTIONS: Mapping[Rejection, str] = {
    CALLING_AE_UNKNOWN: "calling_ae",
    CALLED_AE_UNKNOWN: "called_ae",
    LIMIT_EXCEEDED: "limit",
    APPLICATION_CONTEXT_UNKNOWN: "application_context",
    PROTOCOL_VERSION_UNKNOWN: "protocol_version",
}
REFUSALS = ("spool_full", "storage_failed", "too_large", "class_mismatch", "command_mismatch", "unreadable")
"""Why a C-STORE is refused."""

# A series that appears with its first event has no rate at that event: those that alarm begin at zero.
for _rejection in _REJECTIONS.values():
    REJECTED.labels(_rejection)
for _why in ("maximum", "maximum_per_address", "tls"):
    REFUSED_CONNECTIONS.labels(_why)
for _why in ("protocol", "lost"):
    ABORTED.labels(_why)
for _announced in ("yes", "no"):
    RELEASED.labels(_announced)


def rejected(rejection: Rejection) -> None:
    """Count a rejected association."""
    REJECTED.labels(_REJECTIONS.get(rejection, OTHER)).inc()


class Senders:
    """The titles that may become a label."""

    def __init__(self) -> None:
        self._known: frozenset[str] = frozenset()

    def know(self, titles: Iterable[str]) -> None:
        """Take these titles as the ones that the settings name, from now on."""
        self._known = frozenset(title.strip() for title in titles)
        for sender in (*self._known, OTHER):
            RECEIVED_BYTES.labels(sender)
            for outcome in ("new", "duplicate", "conflict"):
                RECEIVED.labels(sender, outcome, "")
            for reason in REFUSALS:
                RECEIVED.labels(sender, "refused", reason)

    def label(self, ae_title: str) -> str:
        """The title, or `other`."""
        return ae_title if ae_title in self._known else OTHER


SENDERS = Senders()
"""Of this process; the server names them, and again at a reload."""


class Disks(Collector):
    """Room on the file systems that we write to, asked at each scrape."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = places

    def collect(self) -> Iterator[Metric]:
        """Free and all bytes by volume; a volume that does not answer is left out."""
        free = GaugeMetricFamily(
            "covariance_disk_free_bytes", "Bytes free on the volume.", labels=("volume",)
        )
        total = GaugeMetricFamily("covariance_disk_bytes", "Bytes of the volume.", labels=("volume",))
        for volume, path in self._places.items():
            nearest = next((one for one in (path, *path.absolute().parents) if one.exists()), None)
            if nearest is None:
                continue
            try:
                usage = shutil.disk_usage(nearest)
            except OSError:
                continue
            free.add_metric((volume,), usage.free)
            total.add_metric((volume,), usage.total)
        yield free
        yield total


class Build(Collector):
    """Which program this is."""

    def __init__(self, process: str) -> None:
        self._facts = {
            "process": process,
            "version": version("covariance"),
            "python": platform.python_version(),
        }

    def collect(self) -> Iterator[Metric]:
        """One series that is always 1."""
        yield InfoMetricFamily("covariance_build", "Version of the program.", self._facts)


def process_registry(
    process: str, places: Mapping[str, Path], *parts: CollectorRegistry | Collector
) -> CollectorRegistry:
    """The parts, and what every process tells: its version, its memory and descriptors, and its disks."""
    registry = CollectorRegistry()
    for collector in (Build(process), Disks(places), *parts):
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry
