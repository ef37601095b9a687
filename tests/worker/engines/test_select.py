"""Which engine serves, and what happens where its device is not here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dicom_node.errors import ConfigurationError
from tests.worker.build import settings_in
from worker.engines import DeviceLost, DeviceUnavailable
from worker.engines.select import open_engine, open_named, resolve
from worker.engines.tensorrt.cuda import driver_is_here, failure
from worker.guard import Decoders
from worker.phantom import phantom_dataset
from worker.settings import WorkerSection

pytestmark = pytest.mark.skipif(driver_is_here(), reason="this machine has a GPU")


@pytest.fixture
def settings(tmp_path):
    """`settings(**values)`: the worker's section with a cache of the test's own."""
    return lambda **values: WorkerSection(engine_cache=tmp_path / "cache", **values)


def test_without_a_driver_auto_is_the_cpu_engine(bundle, settings):
    """`auto`, the default, serves with OpenVINO where there is no GPU, and loads nothing to find out."""
    assert resolve(settings().engine) == "openvino"
    engine = open_engine(bundle, settings())
    assert engine.name.startswith("openvino")
    assert "in place of" not in engine.name
    engine.close()


@pytest.mark.parametrize("name", ["tensorrt", "torch"])
def test_a_gpu_engine_without_a_gpu_does_not_serve(bundle, settings, name):
    """Without its device an engine is refused, with what to look at and which settings help."""
    with pytest.raises(DeviceUnavailable, match=r"worker\.engine"):
        open_engine(bundle, settings(engine=name))


@pytest.mark.parametrize("name", ["tensorrt", "torch"])
def test_with_the_fallback_the_cpu_goes_on_and_says_so(bundle, settings, name):
    """With `fallback = "cpu"` OpenVINO serves, under a name that every result carries."""
    engine = open_engine(bundle, settings(engine=name, fallback="cpu"))
    assert engine.name.startswith("openvino ")
    assert engine.name.endswith(f" in place of {name}")
    engine.close()


def test_the_fallback_is_for_a_missing_device_only(bundle, settings, tmp_path):
    """A model that does not compile is no reason to try another engine."""
    (tmp_path / "cache").touch()
    with pytest.raises(ConfigurationError):
        open_engine(bundle, settings(engine="openvino", fallback="cpu"))


def test_one_engine_by_name_never_falls_back(bundle, settings):
    """Who asks for one engine gets that one or none."""
    with pytest.raises(DeviceUnavailable):
        open_named("tensorrt", bundle, settings(fallback="cpu"))


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"engine": "onnxruntime"}, "engine"),
        ({"max_batch": 64}, "max_batch"),
        ({"max_wait_ms": -1}, "max_wait_ms"),
    ],
)
def test_unusable_settings_are_named(values, where):
    """An engine that does not exist, and a batch that no profile holds, are refused by name."""
    with pytest.raises(ValueError, match=where):
        WorkerSection(**values)


def test_a_cuda_error_means_what_it_means_by_when_it_comes():
    """At the start it is a matter for the operator; under way the device is lost and the studies are not."""
    opening = failure("cudaErrorNoDevice", "cudaSetDevice", serving=False)
    assert isinstance(opening, DeviceUnavailable)
    full = failure("cudaErrorMemoryAllocation", "cudaMalloc", serving=False)
    assert isinstance(full, DeviceUnavailable)
    assert "too little free memory" in str(full)
    lost = failure("cudaErrorIllegalAddress", "cudaStreamSynchronize", serving=True)
    assert isinstance(lost, DeviceLost)
    assert "cudaErrorIllegalAddress" in str(lost)


def test_the_cpu_engine_loads_neither_torch_nor_cuda(tmp_path):
    """A worker with the CPU engine pays for nothing that it does not use."""
    script = f"""
import json, sys
from pathlib import Path
from worker.bundle import Bundle
from worker.engines.select import open_engine
from worker.settings import WorkerSection
settings = WorkerSection(engine_cache=Path({str(tmp_path)!r}))
open_engine(Bundle(settings.bundle), settings)
print(json.dumps(sorted({{"torch", "onnx", "cuda", "tensorrt", "tensorrt_rtx"}} & sys.modules.keys())))
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout.splitlines()[-1]) == []


def test_decoders_hold_nothing_of_the_device(tmp_path, spooled):
    """A decoder is a fresh program, not a copy of the worker: it maps neither CUDA nor an engine."""
    with Decoders(settings_in(tmp_path, worker={"decoders": 1})) as decoders:
        decoders.read(spooled(phantom_dataset(1, rows=300, columns=300)))
        (pid,) = decoders.pids
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    mapped = {Path(line.split()[-1]).name for line in maps if "/" in line}
    assert not [name for name in mapped if name.startswith(("libcuda", "libtorch", "libopenvino", "libnv"))]
