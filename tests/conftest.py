"""What every test may use: where the real films are, and which external programs must be here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

ROOT = Path(__file__).parent.parent
REAL_FILMS = ROOT.parent / "shared" / "data"
PEERS_REQUIRED = os.environ.get("COVARIANCE_REQUIRE_PEERS") == "1"


def _real_films() -> str:
    if REAL_FILMS.is_dir():
        return f"real films: here ({REAL_FILMS})"
    return "real films: NOT here (../shared/data): what needs them is skipped"


def pytest_report_header() -> str:
    """Say at the start whether real films are here."""
    return _real_films()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it at the end, too: a green session without real films has proven less."""
    terminalreporter.write_line(_real_films(), yellow=not REAL_FILMS.is_dir())


def find_program(name: str, *places: str) -> str:
    """The path of an external program; without it the test is skipped, or fails where peers are required."""
    found = shutil.which(name) or next((p for p in places if Path(p).exists()), None)
    if found is None:
        sentence = f"{name} is not installed"
        if PEERS_REQUIRED:
            pytest.fail(sentence)
        pytest.skip(sentence)
    return found


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A command that was run within the tests leaves its log level and its closed stderr to nobody."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def program():
    """`program(name)` finds an external program or skips (fails where COVARIANCE_REQUIRE_PEERS=1)."""
    return find_program


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real films; tests that need it are skipped where it is absent."""
    if not REAL_FILMS.is_dir():
        pytest.skip("no real films beside the checkout (../shared/data)")
    return REAL_FILMS
