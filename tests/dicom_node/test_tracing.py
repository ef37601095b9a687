"""Traces, for who wants them."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("opentelemetry.sdk")

from dicom_node import tracing
from dicom_node.settings import TracingSection
from tests.dicom_node.collector import collecting


@pytest.fixture(autouse=True)
def stopped():
    yield
    tracing.stop()


def test_a_study_is_one_trace_in_every_process():
    """Two processes that know nothing of each other tell spans of one trace; another study is another."""
    with collecting() as collector:
        for process, name in (("node", "receive"), ("worker", "infer")):
            tracing.start(TracingSection(endpoint=collector.endpoint), process)
            tracing.span(name, "1.2.3", seconds=0.5, error="Retryable" if name == "infer" else "")
            tracing.span(name, "1.2.4", seconds=0.5)
            tracing.stop()
    mine = f"{tracing.trace_id('1.2.3'):032x}"
    assert [(service, name) for service, name, trace in collector.spans if trace == mine] == [
        ("covariance-node", "receive"),
        ("covariance-worker", "infer"),
    ]
    assert len({trace for _, _, trace in collector.spans}) == 2


def test_it_is_off_and_not_imported():
    """Without an endpoint no process loads an exporter (the SDK, where installed, redis-py loads itself)."""
    code = (
        "import sys, worker.app, worker.office, dicom_node.main\n"
        "from dicom_node import tracing\n"
        "from dicom_node.settings import TracingSection\n"
        "tracing.start(TracingSection(), 'node')\n"
        "tracing.span('receive', '1.2.3', seconds=1.0)\n"
        "sys.exit(any(n.startswith('opentelemetry.exporter') for n in sys.modules))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_collector_that_is_away_stops_nobody():
    """Spans that nobody takes are lost, and that is all."""
    tracing.start(TracingSection(endpoint="http://127.0.0.1:9/v1/traces"), "node")
    tracing.span("receive", "1.2.3", seconds=0.1)
