"""The TensorRT that builds without a GPU, and the shipped bundle."""

from __future__ import annotations

import pytest

from worker.bundle import Bundle
from worker.engines.tensorrt.library import Library, find_library
from worker.settings import DEFAULT_BUNDLE


@pytest.fixture
def library() -> Library:
    """TensorRT-RTX, whose builder needs no GPU; the tests that build are skipped without it."""
    pytest.importorskip("tensorrt_rtx", reason="the dependency group `engines` is not installed")
    return find_library("tensorrt_rtx")


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The bundle that we ship."""
    return Bundle(DEFAULT_BUNDLE)
