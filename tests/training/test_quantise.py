"""Eight bits serve only where they are asked for, are there, are unaltered, and agree with the model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from dicom_node.errors import ConfigurationError
from training.bundle.quantise import GRAPH, WEIGHTS, quantise
from worker.bundle import Bundle
from worker.engines.select import open_named
from worker.model_store import ModelStore
from worker.parity import measure_parity
from worker.phantom import radiograph
from worker.preprocess import to_batch, to_input
from worker.settings import DEFAULT_BUNDLE, WorkerSection, load_settings

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def phantoms():
    """Phantoms: what they teach of ranges is enough for a gate of phantoms."""
    return np.stack([to_input(radiograph(seed, rows=625, columns=512)) for seed in range(8)])


@pytest.fixture(scope="module")
def quantised(phantoms, tmp_path_factory):
    """A copy of the shipped bundle with an eight-bit network."""
    directory = tmp_path_factory.mktemp("bundles") / "densenet121-covid"
    shutil.copytree(DEFAULT_BUNDLE, directory)
    quantise(directory, phantoms)
    return directory


def settings(tmp_path, precision="int8"):
    return WorkerSection(engine="openvino", engine_precision=precision, engine_cache=tmp_path)


def test_eight_bits_serve_behind_the_gate(quantised, tmp_path):
    """The engine says its precision, agrees within the tolerances, and is not the whole network."""
    bundle = Bundle(quantised)
    found = {}
    pixels = to_batch([to_input(radiograph(99, rows=625, columns=512))])
    for precision in ("int8", "native"):
        engine = open_named("openvino", bundle, settings(tmp_path / precision, precision))
        assert (engine.precision == "int8") == (precision == "int8")
        found[precision] = float(engine.infer(pixels).logits_B[0]), measure_parity(bundle, engine)
        engine.close()
    golden = bundle.manifest.golden
    assert found["int8"][1].logit <= golden.logit_tolerance
    assert found["int8"][1].cam <= golden.cam_tolerance
    assert found["int8"][0] != found["native"][0]
    convolutions = (quantised / GRAPH).read_text().count('type="Convolution"')
    assert convolutions == 120
    assert (quantised / GRAPH).read_text().count('type="FakeQuantize"') > 90


@pytest.mark.parametrize("part", [GRAPH, WEIGHTS])
def test_altered_eight_bits_are_refused_by_name(quantised, tmp_path, part):
    """Whichever of the two files was touched."""
    altered = tmp_path / "altered"
    shutil.copytree(quantised, altered)
    with (altered / part).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ConfigurationError, match=f"{part} is not the one that its manifest names"):
        Bundle(altered)


def test_eight_bits_are_installed_with_their_bundle(quantised, tmp_path):
    """The store takes the graph and its weights over, and what it holds serves."""
    store = ModelStore(tmp_path / "models")
    held = store.find(store.install(quantised).bundle_sha256)
    assert Bundle(held).network_path("int8").read_bytes() == (quantised / GRAPH).read_bytes()
    assert (held / WEIGHTS).read_bytes() == (quantised / WEIGHTS).read_bytes()


def test_a_bundle_without_eight_bits_says_how_to_make_them(tmp_path):
    """The shipped bundle has none."""
    with pytest.raises(ConfigurationError, match="python -m training quantise"):
        open_named("openvino", Bundle(DEFAULT_BUNDLE), settings(tmp_path))


def test_eight_bits_that_do_not_agree_leave_the_bundle_alone(phantoms, tmp_path):
    """A bundle that tolerates nothing refuses them, and every file is as it was."""
    strict = tmp_path / "strict"
    shutil.copytree(DEFAULT_BUNDLE, strict)
    manifest = json.loads((strict / "manifest.json").read_text())
    manifest["golden"]["cam_tolerance"] = 1e-4
    (strict / "manifest.json").write_text(json.dumps(manifest))
    before = {path.name: path.read_bytes() for path in strict.iterdir()}
    with pytest.raises(ConfigurationError, match=r"\(int8\) does not agree with the model on golden case"):
        quantise(strict, phantoms[:2])
    assert {path.name: path.read_bytes() for path in strict.iterdir()} == before


def test_eight_bits_are_asked_of_openvino_only(monkeypatch):
    """Another engine with them is a setting that cannot work."""
    monkeypatch.setenv("COVARIANCE_WORKER__ENGINE_PRECISION", "int8")
    monkeypatch.setenv("COVARIANCE_WORKER__ENGINE", "auto")
    with pytest.raises(ConfigurationError, match='needs engine "openvino"'):
        load_settings()
