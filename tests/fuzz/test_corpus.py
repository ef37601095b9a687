"""The kept inputs of every fuzz target, without the fuzzer. `make fuzz` looks for more of them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.fuzz.__main__ import TARGETS, corpus

LARGEST_CORPUS = 200_000  # bytes, of all targets


def inputs() -> list[Path]:
    return [path for target in TARGETS for path in sorted(corpus(target).iterdir())]


@pytest.mark.parametrize("path", inputs(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_kept_input(path: Path) -> None:
    """What once led a decoder astray, or to a place of its own, ends as the target says."""
    importlib.import_module(f"tests.fuzz.{path.parent.name}").one_input(path.read_bytes())


def test_the_corpus_is_small() -> None:
    """Every target has inputs, and all of them together are no burden to the repository."""
    assert {path.parent.name for path in inputs()} == set(TARGETS)
    assert sum(path.stat().st_size for path in inputs()) < LARGEST_CORPUS
