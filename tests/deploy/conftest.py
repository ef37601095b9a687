"""Real processes, started and watched from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from dicom_node.settings import CONFIGURATION_FILE


def _eventually(probe: Callable[[], Any], *, what: str, seconds: float = 60.0) -> Any:
    """Ask again and again until the answer is true, and return it; fail with `what` at the deadline."""
    deadline = time.monotonic() + seconds
    while not (answer := probe()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)
    return answer


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> set[int]:
    """Every process that `pid` or a child of it has started and that still knows its parent."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, frontier = set(), {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`eventually(probe, what=...)` polls with a deadline."""
    return _eventually


@pytest.fixture
def family() -> Callable[[int], set[int]]:
    """`family(pid)` is every living process below `pid`."""
    return descendants


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """`alive(pid)` says whether a process runs."""
    return is_alive


@pytest.fixture
def covariance(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command in an empty folder and return what it said."""

    def run(*arguments: str, seconds: float = 120.0, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "deploy", *arguments],
            cwd=tmp_path,
            env=clean_environment(**environment),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    return run


@pytest.fixture
def invoke(tmp_path, monkeypatch) -> Callable[..., Result]:
    """Run the command within this process, in an empty folder and without settings from outside."""
    for name in list(os.environ):
        if name.startswith("COVARIANCE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv(CONFIGURATION_FILE, "")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


def clean_environment(**overrides: str) -> dict[str, str]:
    """Our environment without settings, and wide enough that no line is wrapped."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COVARIANCE_")}
    return {**kept, "COLUMNS": "200", "TERM": "dumb", **overrides}


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process with its output in `tmp_path/output`; what it leaves is killed after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "output").open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=tmp_path,
                env=clean_environment(**environment),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process

    yield run
    for process in started:
        family = descendants(process.pid)
        if process.poll() is None:
            process.kill()
            process.wait()
        for pid in family:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
