"""What every test may use: where the real films are, and which external programs must be here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

ROOT = Path(__file__).parent.parent
PEERS_REQUIRED = os.environ.get("COVARIANCE_REQUIRE_PEERS") == "1"


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
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no real films beside the checkout (../shared/data)")
    return path
