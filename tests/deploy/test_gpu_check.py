"""`gpu-check` and `engine build` say what ran, and name what could not."""

from __future__ import annotations

import json

import pytest

from deploy.gpu_check import build_engine, check_engine, check_engines
from dicom_node.errors import ConfigurationError
from worker.bundle import Bundle
from worker.engines.tensorrt.cuda import driver_is_here
from worker.settings import DEFAULT_BUNDLE, Settings

without_gpu = pytest.mark.skipif(driver_is_here(), reason="this machine has a GPU")


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(worker={"engine_cache": tmp_path / "cache"})


@without_gpu
def test_without_a_gpu_the_cpu_engine_is_measured_and_the_others_are_named(settings, capsys):
    """There are figures for what ran, a reason for what did not, and the exit code says that no GPU did."""
    assert check_engines(settings, seconds=0.1, as_json=True) == 1
    told = capsys.readouterr()
    assert "No GPU: " in told.err
    checks = {check["wanted"]: check for check in json.loads(told.out)["engines"]}
    assert set(checks) == {"tensorrt", "torch", "openvino"}
    for name in ("tensorrt", "torch"):
        assert checks[name]["why_not"]
        assert not checks[name]["rates"]
        assert not checks[name]["refused"]
    assert [rate["batch"] for rate in checks["openvino"]["rates"]] == [1, 8]
    for rate in checks["openvino"]["rates"]:
        assert rate["images_per_second"] > 0
        assert 0 < rate["p50_ms"] <= rate["p99_ms"]
    golden = Bundle(DEFAULT_BUNDLE).manifest.golden
    assert 0 < checks["openvino"]["parity"]["logit"] <= golden.logit_tolerance


def test_an_engine_that_disagrees_is_refused_and_not_measured(settings):
    """No rate is told for an engine that is not the model."""
    bundle = Bundle(DEFAULT_BUNDLE)
    golden = bundle.manifest.golden.model_copy(update={"logit_tolerance": 0.0})
    bundle.manifest = bundle.manifest.model_copy(update={"golden": golden})
    check = check_engine("openvino", bundle, settings, seconds=0.1)
    assert check.refused
    assert "will not serve" in check.why_not
    assert check.rates == ()


def test_build_fills_the_cache(settings, capsys):
    """After `engine build` the compiled model is in the cache, and the next start takes it from there."""
    build_engine(settings)
    assert "openvino" in capsys.readouterr().out
    assert list(settings.worker.engine_cache.iterdir())


@without_gpu
def test_build_without_the_gpu_is_refused(settings):
    """A plan is built on the card that will run it, and nowhere else."""
    section = settings.worker.model_copy(update={"engine": "tensorrt"})
    with pytest.raises(ConfigurationError, match="no NVIDIA GPU"):
        build_engine(settings.model_copy(update={"worker": section}))


@without_gpu
def test_the_command_says_so_in_a_sentence(invoke, monkeypatch):
    """Exit code 2, and nothing is built."""
    monkeypatch.setenv("COVARIANCE_WORKER__ENGINE", "tensorrt")
    done = invoke("engine", "build")
    assert (done.exit_code, "no NVIDIA GPU" in done.stderr) == (2, True), done.output
