"""A bundle is opened whole and unaltered, or not at all; an engine serves when it is the model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dicom_node.errors import ConfigurationError
from worker import preprocess
from worker.bundle import Bundle
from worker.engines.openvino import OpenVinoEngine
from worker.findings import Inference
from worker.parity import replay_golden
from worker.scorer import Scorer
from worker.settings import DEFAULT_BUNDLE, Settings, WorkerSection


@pytest.fixture
def copy(tmp_path) -> Path:
    """The shipped bundle, for a test to spoil."""
    return Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The CPU engine on the shipped bundle."""
    cache = tmp_path_factory.mktemp("engine")
    opened = OpenVinoEngine(Bundle(DEFAULT_BUNDLE), WorkerSection(engine_cache=cache))
    yield opened
    opened.close()


def alter(directory: Path, **changes: object) -> None:
    """Change values at the top of a manifest."""
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_the_shipped_bundle_opens():
    """Digests, recipe and size of the bundle that we ship are those that its manifest names."""
    bundle = Bundle(DEFAULT_BUNDLE)
    inputs_BHW, cams_Bhw = bundle.golden()
    assert inputs_BHW.shape == (len(bundle.manifest.golden.cases), preprocess.SIZE, preprocess.SIZE)
    assert inputs_BHW.dtype == np.uint8
    assert cams_Bhw.shape == (len(inputs_BHW), preprocess.SIZE // 32, preprocess.SIZE // 32)
    assert bundle.manifest.operating_point in bundle.manifest.operating_points


def test_the_cpu_engine_replays_the_golden_cases(engine):
    """The shipped model gives on this machine what it gave where it was made."""
    bundle = Bundle(DEFAULT_BUNDLE)
    assert replay_golden(bundle, engine) <= bundle.manifest.golden.logit_tolerance


def test_a_map_explains_its_whole_logit(engine):
    """Over all golden cases, logit minus the mean of the map is the same number: the bias."""
    inputs_BHW, _ = Bundle(DEFAULT_BUNDLE).golden()
    biases = []
    for input_HW in inputs_BHW[:3]:
        found = engine.infer(preprocess.to_batch([input_HW]))
        biases.append(float(found.logits_B[0] - found.cams_Bhw[0].mean()))
    # bf16 arithmetic, where the CPU has it, keeps three digits.
    assert np.ptp(biases) < 0.02


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_an_altered_file_is_refused(copy, name):
    """One more byte in a file of the bundle is noticed, and the file is named."""
    with (copy / name).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigurationError, match=f"{name} is not the one"):
        Bundle(copy)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_a_file_altered_in_place_is_refused(copy, name):
    """One bit that is another, size and time being the same, is noticed, and the file is named."""
    before = (copy / name).stat()
    with (copy / name).open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(copy / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ConfigurationError, match=f"{name} is not the one"):
        Bundle(copy)


def test_a_bundle_that_was_exchanged_is_refused(copy):
    """Another model with a manifest that fits it is no way around a pinned digest."""
    pinned = Bundle(copy).sha256
    model = copy / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    alter(copy, model={"name": "model.onnx", "sha256": digest}, threshold_of=digest)
    assert Bundle(copy).manifest.model.sha256 == digest
    with pytest.raises(ConfigurationError, match=r"manifest\.json is not the one that worker\.bundle_sha256"):
        Bundle(copy, pinned=pinned)


def test_a_pinned_bundle_opens():
    """The bundle whose manifest has the pinned digest is served."""
    assert Bundle(DEFAULT_BUNDLE, pinned=Bundle(DEFAULT_BUNDLE).sha256).manifest.name


def test_the_worker_honours_the_pin():
    """A worker whose settings pin another bundle does not start."""
    settings = Settings(worker=WorkerSection(bundle_sha256="0" * 64))
    with pytest.raises(ConfigurationError, match="bundle_sha256"):
        Scorer(settings)


def test_a_missing_file_is_refused(copy):
    """A bundle without its model is refused by the model's name."""
    (copy / "model.onnx").unlink()
    with pytest.raises(ConfigurationError, match=r"model\.onnx cannot be read"):
        Bundle(copy)


def test_no_bundle_is_refused(tmp_path):
    """A folder without a manifest is no bundle."""
    with pytest.raises(ConfigurationError, match="No model bundle"):
        Bundle(tmp_path)


def test_a_threshold_of_another_model_is_refused(copy):
    """A threshold is used with the model that it was chosen for, and with no other."""
    alter(copy, threshold_of="0" * 64)
    with pytest.raises(ConfigurationError, match="chosen for another model"):
        Bundle(copy)


def test_another_recipe_is_refused(copy):
    """A worker whose recipe is not the model's does not serve it."""
    alter(copy, recipe="stretch-224/7")
    with pytest.raises(ConfigurationError, match="wants recipe stretch-224/7"):
        Bundle(copy)


def test_an_unusable_value_is_named(copy):
    """A manifest with a wrong value is refused with the place of that value."""
    manifest = json.loads((copy / "manifest.json").read_bytes())
    alter(copy, operating_point=manifest["operating_point"] | {"probability": 7})
    with pytest.raises(ConfigurationError, match=r"`operating_point\.probability`"):
        Bundle(copy)


def test_probability_is_the_tempered_sigmoid():
    """Probability is one half at logit 0 and falls and rises with the temperature of the manifest."""
    bundle = Bundle(DEFAULT_BUNDLE)
    assert bundle.probability(0.0) == 0.5
    assert bundle.probability(bundle.manifest.temperature) == pytest.approx(1 / (1 + np.exp(-1)))


class Drifted:
    """An engine whose logits are off by a constant, as after a wrong conversion."""

    name, precision, batches = "drifted", "f32", (1,)

    def __init__(self, engine: OpenVinoEngine, by: float) -> None:
        self._engine, self._by = engine, by

    def infer(self, pixels_B1HW):
        found = self._engine.infer(pixels_B1HW)
        return Inference(logits_B=found.logits_B + np.float32(self._by), cams_Bhw=found.cams_Bhw)

    def close(self) -> None:
        """Nothing of its own to free."""


@pytest.mark.parametrize("by", [0.5, float("nan")], ids=["off", "not a number"])
def test_an_engine_that_is_off_does_not_serve(engine, by):
    """An engine out of tolerance is refused, with the case and the difference in the sentence."""
    with pytest.raises(ConfigurationError, match=r"drifted .*phantom-.*will not serve"):
        replay_golden(Bundle(DEFAULT_BUNDLE), Drifted(engine, by))
