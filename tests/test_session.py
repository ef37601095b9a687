"""What a test session says of itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("there", "said"), [(True, "real films: here"), (False, "real films: NOT here")])
@pytest.mark.parametrize("options", [[], ["-q"]], ids=["header", "quiet"])
def test_a_session_says_whether_real_films_were_there(
    tmp_path: Path, there: bool, said: str, options: list[str]
) -> None:
    """A green session without real films is not taken for one with them, however little it prints."""
    tests = tmp_path / "checkout" / "tests"
    tests.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("conftest.py"), tests)
    (tests / "test_one.py").write_text("def test_one(): pass\n")
    if there:
        (tmp_path / "shared" / "data").mkdir(parents=True)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, str(tests)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True, check=True)
    assert said in done.stdout
