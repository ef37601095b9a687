import subprocess
import sys

import pytest

from dicom_node.errors import ConfigurationError
from worker.bundle import Bundle, write_manifest
from worker.engines.openvino import OpenVinoEngine
from worker.engines.select import open_engine
from worker.parity import replay_golden
from worker.settings import WorkerSection


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


def test_threads_keep_their_cores_when_they_are_to(bundle, tmp_path):
    """`worker.engine_pinning` reaches the compiler, and changes no result's place or shape."""
    pinned = OpenVinoEngine(bundle, WorkerSection(engine_cache=tmp_path, engine_pinning=True))
    assert replay_golden(bundle, pinned) <= bundle.manifest.golden.logit_tolerance
    assert pinned.pinned
    pinned.close()


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
