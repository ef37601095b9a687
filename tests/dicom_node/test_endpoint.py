"""The HTTP port of a process."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from dicom_node import metrics
from dicom_node.endpoint import Endpoint
from dicom_node.errors import ConfigurationError
from dicom_node.settings import NodeSettings, read_settings
from dicom_node.spool import Spool
from tests.integration.system import free_port


def get(port: int, path: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_it_tells_what_was_counted():
    """A counter is told with its value, in the text format of Prometheus."""
    registry, port = CollectorRegistry(), free_port()
    Counter("films", "Films.", registry=registry).inc(3)
    with Endpoint(registry, host="127.0.0.1", port=port, readiness=lambda: None):
        status, content_type, body = get(port, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    assert "films_total 3.0" in body


def test_who_is_not_ready_lives():
    """What is in the way of work is said with 503; the process lives all the same."""
    port = free_port()
    with Endpoint(CollectorRegistry(), host="127.0.0.1", port=port, readiness=lambda: "The disk is full."):
        assert get(port, "/readyz")[::2] == (503, "The disk is full.\n")
        assert get(port, "/healthz")[0] == 200


def test_port_zero_opens_nothing_and_a_taken_port_stops_nobody():
    """Without a port nothing listens; a port that another program holds is no error of the process."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for port in (0, other.getsockname()[1]):
            with Endpoint(CollectorRegistry(), host="127.0.0.1", port=port, readiness=lambda: None):
                pass


def test_two_processes_may_not_have_one_port(monkeypatch):
    """Settings that give two processes the same port are refused in one sentence."""
    monkeypatch.setenv("COVARIANCE_METRICS__NODE_PORT", "9464")
    monkeypatch.setenv("COVARIANCE_METRICS__WORKER_PORT", "9464")
    with pytest.raises(ConfigurationError, match="two processes have the same port"):
        read_settings(NodeSettings)


def test_a_stranger_is_no_label():
    """However many titles call, the senders that are told are those of the settings and `other`."""
    senders = metrics.Senders()
    senders.know(["CT1", "MR 2 "])
    assert [senders.label(title) for title in ("CT1", "MR 2", "EVIL", "other")] == [
        "CT1",
        "MR 2",
        "other",
        "other",
    ]


def test_spool_says_why_it_cannot_keep(tmp_path):
    """A spool that cannot be written, or is full, says so; a probe leaves no file."""
    spool = Spool(tmp_path / "spool")
    assert spool.objection() == "The spool cannot be written: No such file or directory."
    spool.prepare()
    assert spool.objection() is None
    assert list((tmp_path / "spool" / "incoming").iterdir()) == []
    full = Spool(tmp_path / "spool", minimum_free_bytes=1 << 60)
    assert full.objection() == "The spool has less free space than spool.minimum_free_bytes."
