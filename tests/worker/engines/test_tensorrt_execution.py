"""A plan on its card. These tests need one; what they share with every engine is in `test_contract`."""

from __future__ import annotations

import numpy as np
import pytest

from dicom_node.errors import ConfigurationError
from worker.engines.tensorrt.engine import open_tensorrt
from worker.preprocess import to_batch
from worker.settings import WorkerSection

# A plan is built for a card in minutes.
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> WorkerSection:
    return WorkerSection(engine_cache=tmp_path_factory.mktemp("engine"), max_batch=4)


@pytest.fixture(scope="module")
def executor(bundle, settings):
    opened = open_tensorrt(bundle, settings)
    yield opened
    opened.close()


def test_the_second_start_takes_the_plan_from_the_cache(bundle, settings, executor):
    """Nothing is built twice for the same card, driver, library and model."""
    (plan,) = (settings.engine_cache / "tensorrt").glob("*.plan")
    before = plan.stat().st_mtime_ns
    open_tensorrt(bundle, settings).close()
    assert plan.stat().st_mtime_ns == before


def test_an_altered_plan_is_built_again(bundle, settings, executor):
    """A plan with another digest is never handed to TensorRT."""
    (plan,) = (settings.engine_cache / "tensorrt").glob("*.plan")
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    open_tensorrt(bundle, settings).close()
    assert plan.read_bytes() != bytes(content)


def test_padding_changes_nothing(bundle, executor):
    """Three films in the graph for four score as in the graphs for one."""
    pixels = to_batch(list(bundle.golden()[0]))[:3]
    together = executor.infer(pixels)
    for place in range(3):
        alone = executor.infer(pixels[place : place + 1])
        assert np.allclose(together.logits_B[place], alone.logits_B[0], atol=0.01)


def test_a_batch_over_the_largest_profile_is_refused(bundle, executor):
    """The sentence names the setting; the engine works on."""
    pixels = to_batch(list(bundle.golden()[0]))[:1]
    with pytest.raises(ConfigurationError, match=r"worker\.max_batch to 4"):
        executor.infer(np.repeat(pixels, 5, axis=0))
    assert np.isfinite(executor.infer(pixels).logits_B).all()
