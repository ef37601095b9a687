"""Who is refused reaches the audit trail once, though a process is killed at the worst moment."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from dicom_node.refusals import RefusalWindow
from worker.ledger import Kind


@pytest.fixture
def system(make_system):
    """A CoVariance that admits CT1 alone, and is not running yet."""
    system = make_system([], node={"allowed_callers": ["CT1"]})
    yield system
    system.stop()


@pytest.fixture
def echo(program):
    """`echo(port, title)` is the exit code of DCMTK's echoscu."""

    def run(port: int, title: str) -> int:
        command = [program("echoscu"), "-aet", title, "-aec", "COVARIANCE", "127.0.0.1", str(port)]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode

    return run


def told(system) -> list[RefusalWindow]:
    events = [one for one in system.ledger.events_after(0, 1000) if one.kind == Kind.REFUSED]
    return [RefusalWindow.model_validate_json(one.body) for one in events]


def files(system) -> list[str]:
    return [path.name for path in (system.folder / "spool" / "refusals").iterdir()]


def refuse(system, echo, times: int) -> None:
    """Have a node refuse a stranger, and stop it: it writes what it has counted."""
    system.start("node")
    assert [echo(system.port, "STRANGER") == 0 for _ in range(times)] == [False] * times
    assert echo(system.port, "CT1") == 0
    system.programs["node"].stop()


def test_a_kill_between_commit_and_removal_loses_and_doubles_nothing(system, echo, eventually):
    """SIGKILL when the ledger has a window and its file is still there: the next one removes the file."""
    refuse(system, echo, 3)
    refuse(system, echo, 2)
    assert len(files(system)) == 2
    deliver = system.programs["deliver"]
    for window in (1, 2):
        deliver.environment = {"COVARIANCE_FAILPOINTS": f"refusals.after_take=kill@{window}"}
        deliver.start()
        assert deliver.process.wait(60) == -signal.SIGKILL
        assert len(files(system)) == 3 - window, "the file of a window went before the failpoint"
        assert len(told(system)) == window
    deliver.environment = {}
    deliver.start()
    eventually(lambda: not files(system), what="both windows are taken")
    assert [window.count for window in told(system)] == [3, 2]
    assert [(one.address, one.calling_ae) for window in told(system) for one in window.refusals] == [
        ("127.0.0.1", "STRANGER")
    ] * 2
    assert system.ledger.verify().ok


def test_a_kill_before_the_commit_loses_nothing(system, echo, eventually):
    """A window that stands only in the spool is there for the next deliverer, and is taken once."""
    refuse(system, echo, 1)
    (name,) = files(system)
    deliver = system.programs["deliver"]
    deliver.start()
    deliver.kill()
    deliver.start()
    eventually(lambda: not files(system), what="the window is taken")
    assert [f"{window.name}.json" for window in told(system)] == [name]
    assert json.loads(system.ledger.events_after(0, 1)[0].body)["refusals"][0]["reason"] == "unknown_title"
