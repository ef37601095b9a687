"""Failpoints do what they are told to, once where that is asked, and nothing where nobody asks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import dicom_node
import worker
from dicom_node import failpoints
from dicom_node.errors import ConfigurationError
from dicom_node.settings import FAILPOINTS

POINT = "spool.after_write"


@pytest.fixture(autouse=True)
def disarmed(monkeypatch):
    """No test leaves a point armed."""
    yield
    monkeypatch.delenv(FAILPOINTS, raising=False)
    failpoints.arm()


@pytest.fixture
def arm(monkeypatch):
    """`arm(text)` arms this process as a start with that environment would."""

    def arm(text: str) -> None:
        monkeypatch.setenv(FAILPOINTS, text)
        failpoints.arm()

    return arm


def failures(times: int) -> list[bool]:
    """Reach the point so often, and say at which times it failed."""
    failed = []
    for _ in range(times):
        try:
            failpoints.reach(POINT)
        except OSError:
            failed.append(True)
        else:
            failed.append(False)
    return failed


def test_nothing_happens_where_nothing_is_armed(arm):
    """An empty variable arms nothing and warns of nothing."""
    with capture_logs() as logs:
        arm("")
    assert failures(3) == [False] * 3
    assert logs == []
    assert failpoints.warning() is None


def test_raise_fails_every_time(arm):
    """Without a number a point fails whenever it is reached, and the others never."""
    arm(f"{POINT}=raise")
    assert failures(3) == [True] * 3
    failpoints.reach("spool.after_fsync")


def test_number_fails_once(arm):
    """With `@2` only the second time counts."""
    arm(f"{POINT}=raise@2")
    assert failures(4) == [False, True, False, False]


def test_marker_is_for_all_processes(arm, tmp_path):
    """Whoever makes the file acts; the same setting in a process that starts later does nothing."""
    for expected in ([True, False], [False, False]):
        arm(f"{POINT}=raise~{tmp_path / 'mark'}")
        assert failures(2) == expected


def test_sleep_pauses(arm):
    """`sleep` goes on after the pause."""
    arm(f"{POINT}=sleep:0.2")
    begun = time.monotonic()
    assert failures(1) == [False]
    assert time.monotonic() - begun >= 0.2


def test_kill_is_a_sigkill():
    """`kill` ends the process as the kernel would, without a word."""
    code = f"from dicom_node import failpoints; failpoints.arm(); failpoints.reach({POINT!r}); print('alive')"
    environment = {**os.environ, FAILPOINTS: f"{POINT}=kill"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert b"alive" not in done.stdout


def test_armed_points_are_warned_of_once(arm):
    """A process that starts with two points armed logs one line, and the check of the settings says which."""
    with capture_logs() as logs:
        arm(f"{POINT}=raise;outbox.after_keep=kill@7")
    assert [(one["event"], one["log_level"]) for one in logs] == [("failpoints_armed", "warning")]
    assert "outbox.after_keep, spool.after_write" in (failpoints.warning() or "")


@pytest.mark.parametrize("text", ["spool.after_wrote=kill", f"{POINT}=explode", f"{POINT}=sleep", POINT])
def test_what_cannot_be_understood_is_refused(arm, text):
    """A point that does not exist would be a test that tests nothing."""
    with pytest.raises(ConfigurationError, match="COVARIANCE_FAILPOINTS"):
        arm(text)


def test_every_point_is_reached_at_one_place():
    """The points of the list and those in the sources are the same."""
    folders = [Path(package.__file__).parent for package in (dicom_node, worker)]
    sources = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    found = Counter(point for source in sources for point in re.findall(r'reach\("([a-z_.]+)"\)', source))
    assert found == dict.fromkeys(failpoints.POINTS, 1)
