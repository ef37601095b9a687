"""What a failed call of torch means: the device is lost only where nothing works after it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the extra `training` is not installed")

from worker.engines.torch import _is_lost  # noqa: E402 (behind what it needs)

pytestmark = pytest.mark.training


def test_one_call_that_fails_is_no_lost_device(monkeypatch):
    """A shape that does not fit must not end worker after worker with its study."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not _is_lost(RuntimeError("The size of tensor a must match"))


def test_after_a_sticky_error_nothing_works(monkeypatch):
    """The device does not answer any more, or torch says so itself."""

    def fails():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert _is_lost(RuntimeError("anything"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert _is_lost(torch.AcceleratorError("CUDA error"))
