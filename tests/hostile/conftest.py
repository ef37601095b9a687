"""One node for all, one that is soon out of patience, and decoders that may take little."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dicom_node.build import encoded, film, store_request
from tests.hostile.build import REQUEST, Node, command, converse, data_set, start_node
from worker.guard import Decoders
from worker.settings import EligibilitySection, Settings, WorkerSection

MEGABYTE = 1_048_576
GROWTH_BYTES = 64 * MEGABYTE
"""What the node may take more after everything than after a first round of good objects."""


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Iterator[Node]:
    """A node process that has taken a few good objects."""
    running = start_node(tmp_path_factory.mktemp("node"), maximum_object_bytes=8 * MEGABYTE)
    try:
        for _ in range(10):
            sent = film(PixelData=bytes(MEGABYTE))
            said = REQUEST + command(store_request(sent)) + data_set(encoded(sent))
            assert converse(running, said, 2) == ("accepted", "0000")
        running.baseline = running.memory()
        yield running
    finally:
        running.program.stop()


@pytest.fixture(scope="session")
def hasty(tmp_path_factory) -> Iterator[Node]:
    """A node that waits half a second for a PDU, and lets anyone send."""
    running = start_node(tmp_path_factory.mktemp("hasty"), network_timeout=0.5, allowed_callers=[])
    yield running
    running.program.stop()


@pytest.fixture(scope="session")
def decoders() -> Iterator[Decoders]:
    """A guarded decoder with 400 MB and a few seconds for an image, which takes small images, too."""
    worker = WorkerSection(decoders=1, decoder_memory_bytes=400_000_000, decoder_timeout=10)
    with Decoders(Settings(worker=worker, eligibility=EligibilitySection(minimum_pixels=64))) as pool:
        yield pool
