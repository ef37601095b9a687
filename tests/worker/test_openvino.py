import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dicom_node.errors import ConfigurationError
from worker.bundle import Bundle, write_manifest
from worker.engines.select import open_engine
from worker.parity import replay_golden
from worker.preprocess import to_batch
from worker.settings import WorkerSection


@pytest.fixture(scope="module")
def inputs(bundle):
    return to_batch(list(bundle.golden()[0]))[:3]


def test_golden_cases_agree(bundle, engine):
    """The engine gives the reference's logits and maps within the bundle's tolerance."""
    assert replay_golden(bundle, engine) <= bundle.manifest.golden.logit_tolerance


def test_shapes(engine, inputs):
    """A batch gives a logit and a map for each film."""
    found = engine.infer(inputs)
    assert found.logits_B.shape == (len(inputs),)
    assert found.cams_Bhw.shape == (len(inputs), 10, 10)
    assert found.logits_B.dtype == found.cams_Bhw.dtype == np.float32


def test_a_batch_is_its_films(engine, inputs):
    """Films scored together score as they do alone, in their order."""
    together = engine.infer(inputs)
    alone = [engine.infer(one[None]) for one in inputs]
    assert np.allclose(together.logits_B, [one.logits_B[0] for one in alone], atol=1e-4)
    assert np.allclose(together.cams_Bhw, [one.cams_Bhw[0] for one in alone], atol=1e-3)


def test_threads_do_not_mix(engine, inputs):
    """Batches larger than the streams, from several threads, all end, each with its own result."""
    expected = engine.infer(inputs).logits_B
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda shift: engine.infer(np.roll(inputs, shift, axis=0)), range(3)))
    for shift, one in enumerate(found):
        assert np.allclose(one.logits_B, np.roll(expected, shift), atol=1e-4)


def test_an_engine_that_disagrees_does_not_serve(bundle, tmp_path):
    """A bundle whose golden case says otherwise is refused, and the sentence names the case."""
    for path in bundle.directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    golden = bundle.manifest.golden
    wrong = golden.cases[0].model_copy(update={"logit": golden.cases[0].logit + 10 * golden.logit_tolerance})
    cases = (wrong, *golden.cases[1:])
    changed = bundle.manifest.model_copy(update={"golden": golden.model_copy(update={"cases": cases})})
    write_manifest(changed, tmp_path)
    with pytest.raises(ConfigurationError, match=wrong.name):
        open_engine(Bundle(tmp_path), WorkerSection(engine_cache=tmp_path / "cache"))


def test_a_broken_model_is_refused(bundle, tmp_path):
    """A model that cannot be compiled is a configuration error in one sentence."""
    import hashlib

    for path in bundle.directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / bundle.manifest.model.name).write_bytes(b"no model")
    digest = hashlib.sha256(b"no model").hexdigest()
    model = bundle.manifest.model.model_copy(update={"sha256": digest})
    write_manifest(bundle.manifest.model_copy(update={"model": model, "threshold_of": digest}), tmp_path)
    with pytest.raises(ConfigurationError, match="cannot compile"):
        open_engine(Bundle(tmp_path), WorkerSection(engine_cache=tmp_path / "cache"))


def test_nothing_is_reported_home(tmp_path):
    """Opening the engine never loads the telemetry package of OpenVINO."""
    script = f"""
import sys
from pathlib import Path
from worker.bundle import Bundle
from worker.engines.openvino import OpenVinoEngine
from worker.settings import WorkerSection
settings = WorkerSection(engine_cache=Path({str(tmp_path)!r}))
OpenVinoEngine(Bundle(settings.bundle), settings)
assert "openvino" in sys.modules
print([name for name, module in sys.modules.items() if "openvino_telemetry" in name and module])
"""
    # In a process of its own: another test may have loaded openvino in its own way.
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
