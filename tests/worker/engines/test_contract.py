"""What every engine keeps to, in one class: the same tests over each of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from dicom_node.errors import ConfigurationError
from worker import preprocess
from worker.bundle import Bundle
from worker.engines import Engine
from worker.engines.batching import MicroBatcher
from worker.engines.openvino import OpenVinoEngine
from worker.engines.select import open_named
from worker.findings import Inference
from worker.parity import measure_parity, replay_golden
from worker.settings import WorkerSection


def _openvino(bundle: Bundle, settings: WorkerSection) -> Engine:
    return OpenVinoEngine(bundle, settings)


def _torch_on_cpu(bundle: Bundle, settings: WorkerSection) -> Engine:
    torch = pytest.importorskip("torch", reason="the extra `training` is not installed")
    from worker.engines.torch import TorchEngine

    # As it serves on a GPU: behind the batcher, here with batches of up to two.
    return MicroBatcher(
        lambda: TorchEngine(bundle, torch.device("cpu")), max_batch=2, max_wait=0.01, callers=2
    )


def _on_gpu(name: str) -> Callable[[Bundle, WorkerSection], Engine]:
    return lambda bundle, settings: open_named(name, bundle, settings)


OPENERS = [
    pytest.param(_openvino, id="openvino"),
    pytest.param(_torch_on_cpu, id="torch on the CPU", marks=pytest.mark.training),
    pytest.param(_on_gpu("torch"), id="torch", marks=[pytest.mark.gpu, pytest.mark.training]),
    pytest.param(_on_gpu("tensorrt"), id="tensorrt", marks=pytest.mark.gpu),
]


@pytest.fixture(scope="module", params=OPENERS)
def engine(request, bundle, tmp_path_factory):
    """Each engine on the shipped bundle."""
    settings = WorkerSection(engine_cache=tmp_path_factory.mktemp("engine"), max_batch=4, concurrency=2)
    opened = request.param(bundle, settings)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pixels(bundle):
    """Two films, `(2, 1, SIZE, SIZE)`: torch on a busy CPU takes seconds for each."""
    return preprocess.to_batch(list(bundle.golden()[0]))[:2]


@dataclass
class Changed:
    """An engine whose results come out changed, as after a wrong conversion."""

    engine: Engine
    change: Callable[[Inference], Inference]

    def __post_init__(self) -> None:
        self.name, self.precision, self.batches = self.engine.name, self.engine.precision, (1,)

    def infer(self, pixels_B1HW) -> Inference:
        return self.change(self.engine.infer(pixels_B1HW))

    def close(self) -> None:
        """The engine is closed by whom it belongs to."""


class TestEveryEngine:
    """The contract of `worker.engines.Engine`."""

    def test_the_golden_cases_agree(self, bundle, engine):
        """Logits and maps of the golden cases are within the tolerances that the manifest states."""
        golden = bundle.manifest.golden
        parity = measure_parity(bundle, engine)
        assert parity.logit <= golden.logit_tolerance
        assert parity.cam <= golden.cam_tolerance

    def test_a_batch_gives_a_logit_and_a_map_for_each_film(self, engine, pixels):
        """Results are float32, in the order of the films."""
        found = engine.infer(pixels)
        assert found.logits_B.shape == (2,)
        assert found.cams_Bhw.shape == (2, preprocess.SIZE // 32, preprocess.SIZE // 32)
        assert found.logits_B.dtype == found.cams_Bhw.dtype == np.float32

    def test_films_score_together_as_they_do_alone(self, engine, pixels):
        """What shares a batch with a film changes nothing of its result."""
        together = engine.infer(pixels)
        for place in range(2):
            alone = engine.infer(pixels[place : place + 1])
            assert np.allclose(together.logits_B[place], alone.logits_B[0], atol=0.01)
            assert np.allclose(together.cams_Bhw[place], alone.cams_Bhw[0], atol=0.05)

    def test_a_map_explains_its_whole_logit(self, engine, pixels):
        """Logit minus the mean of the map is the same number for every film: the bias."""
        found = engine.infer(pixels)
        assert np.ptp(found.logits_B - found.cams_Bhw.mean(axis=(1, 2))) < 0.02

    def test_threads_do_not_mix(self, engine, pixels):
        """Of batches from several threads each gets its own results."""
        expected_B = engine.infer(pixels).logits_B
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(lambda by: engine.infer(np.roll(pixels, by, axis=0)), range(2)))
        for by, one in enumerate(found):
            assert np.allclose(one.logits_B, np.roll(expected_B, by), atol=0.01)

    def test_results_are_the_callers_own(self, engine, pixels):
        """A later call does not change what an earlier one gave: no buffer is handed out."""
        first = engine.infer(pixels[:1])
        kept = first.cams_Bhw.copy()
        engine.infer(pixels[1:2])
        assert np.array_equal(first.cams_Bhw, kept)

    def test_a_film_that_is_no_film_leaves_its_neighbours_alone(self, engine, pixels):
        """Values that break the arithmetic of one film change nothing of those that share its batch."""
        spoiled = pixels.copy()
        spoiled[1] = np.nan
        expected_B = engine.infer(pixels).logits_B
        found_B = engine.infer(spoiled).logits_B
        assert np.allclose(found_B[0], expected_B[0], atol=0.01)

    def test_a_flipped_decision_does_not_serve(self, bundle, engine):
        """Within any tolerance: an engine that decides otherwise on a case is refused, and the case named."""
        point = bundle.manifest.operating_point
        limit = bundle.manifest.temperature * np.log(point.probability / (1 - point.probability))
        case = bundle.manifest.golden.cases[0]
        lenient = Bundle(bundle.directory)
        golden = bundle.manifest.golden.model_copy(update={"logit_tolerance": 100.0})
        lenient.manifest = bundle.manifest.model_copy(update={"golden": golden})

        def flip(found: Inference) -> Inference:
            return Inference(logits_B=np.float32(2 * limit) - found.logits_B, cams_Bhw=found.cams_Bhw)

        with pytest.raises(ConfigurationError, match=f"{case.name}.*the decision flips.*will not serve"):
            replay_golden(lenient, Changed(engine, flip))

    def test_another_map_does_not_serve(self, bundle, engine):
        """The right logits with maps that are upside down are not the model."""

        def turn(found: Inference) -> Inference:
            return Inference(logits_B=found.logits_B, cams_Bhw=found.cams_Bhw[:, ::-1])

        with pytest.raises(ConfigurationError, match=r"golden case phantom-.*map by .*will not serve"):
            replay_golden(bundle, Changed(engine, turn))


def test_the_gate_tries_every_batch_size(bundle, engine):
    """An engine whose kernels for larger batches are wrong is refused, although it is right for one film."""

    class Two(Changed):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.batches = (1, 2)

    def spoil(found: Inference) -> Inference:
        off = np.float32(len(found.logits_B) - 1)
        return Inference(logits_B=found.logits_B + off, cams_Bhw=found.cams_Bhw)

    with pytest.raises(ConfigurationError, match=r"phantom-\S+ in a batch of 2: logit off by (1\.0|0\.9)"):
        replay_golden(bundle, Two(engine, spoil))
