"""What the tests of faults share with their neighbours: nodes, ledgers, whole systems and real peers."""

from __future__ import annotations

from hypothesis import settings

from tests.dicom_node.conftest import broker, listen
from tests.integration.conftest import (
    eventually_fixture,
    make_system,
    node_port,
    orthanc,
    redis_port,
)
from tests.worker.ledger.conftest import cluster

__all__ = [
    "broker",
    "cluster",
    "eventually_fixture",
    "listen",
    "make_system",
    "node_port",
    "orthanc",
    "redis_port",
]

settings.register_profile("long", print_blob=True)
