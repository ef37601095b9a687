"""Plans are built from a model for real, by TensorRT-RTX, which needs no GPU for that."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from dicom_node.errors import ConfigurationError
from tests.worker.engines.build import SIZE, small_model
from worker.engines import DeviceUnavailable
from worker.engines.tensorrt.builder import build_plan, parse
from worker.engines.tensorrt.cuda import Cuda, driver_is_here
from worker.engines.tensorrt.execution import PlanExecutor, PlanRejected
from worker.engines.tensorrt.library import find_library

without_gpu = pytest.mark.skipif(driver_is_here(), reason="this machine has a GPU")


def test_the_shipped_model_is_strongly_typed_with_float32_at_its_ends(library, bundle):
    """Features are computed in half as the model says; pixels, logit and map are float32 for any batch."""
    trt = library.trt
    builder = trt.Builder(library.logger)
    network = parse(library, builder, bundle.model(), size=bundle.manifest.size)
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    ends = [network.get_input(0), network.get_output(0), network.get_output(1)]
    assert [end.name for end in ends] == ["pixels", "logit", "cam"]
    assert {end.dtype for end in ends} == {trt.float32}
    assert tuple(ends[0].shape) == (-1, 1, bundle.manifest.size, bundle.manifest.size)
    layers = (network.get_layer(index) for index in range(network.num_layers))
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    assert len(convolutions) == 120
    assert {layer.get_output(0).dtype for layer in convolutions} == {trt.float16}


def test_a_plan_grows_with_its_profiles(library):
    """Each batch size has a profile of its own in the plan."""
    one = build_plan(library, small_model(), buckets=(1,), size=SIZE)
    three = build_plan(library, small_model(), buckets=(1, 2, 4), size=SIZE)
    assert 0 < len(one) < len(three)


def test_the_shipped_model_becomes_a_plan(library, bundle):
    """The shipped model builds, with its weights in half."""
    plan = build_plan(library, bundle.model(), buckets=(1,), size=bundle.manifest.size)
    assert len(plan) > bundle.model_path.stat().st_size


@pytest.mark.parametrize(
    ("onnx", "sentence"),
    [
        (b"no model", r"cannot parse the model: .*Export the bundle again"),
        (small_model(operator="NoSuchOperator"), r"cannot parse the model: .* at node 1, NoSuchOp"),
        (
            small_model(outputs=("score", "cam")),
            "has not the input `pixels` and the outputs `logit` and `cam`",
        ),
        (small_model(elements=TensorProto.FLOAT16), "does not take and give float32"),
    ],
    ids=["garbage", "unknown operator", "other outputs", "half at its ends"],
)
def test_a_model_that_cannot_be_built_is_refused_in_one_sentence(library, onnx, sentence):
    """What is wrong with a model, and what to do, stands in one sentence on one line."""
    with pytest.raises(ConfigurationError, match=sentence) as refusal:
        build_plan(library, onnx, buckets=(1,), size=SIZE)
    assert "\n" not in str(refusal.value)


def test_a_model_of_another_size_is_refused(library):
    """A model for smaller films than the bundle says is no model of this bundle."""
    with pytest.raises(ConfigurationError, match="320 x 320"):
        build_plan(library, small_model(), buckets=(1,), size=320)


@without_gpu
def test_a_plan_does_not_load_without_a_gpu(library):
    """Loading a sound plan where there is no GPU says what CUDA said, and does not crash."""
    plan = build_plan(library, small_model(), buckets=(1,), size=SIZE)
    with pytest.raises(PlanRejected, match=r"tensorrt_rtx 1\..* does not load its plan .*CUDA driver"):
        PlanExecutor(library, None, plan, buckets=(1,), size=SIZE)


@without_gpu
def test_no_gpu_is_said_in_one_sentence():
    """Without a driver CUDA is refused with what to look at and which settings help."""
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(DeviceUnavailable, match=r"no NVIDIA GPU .*nvidia-smi.*worker\.fallback"):
        Cuda()


def test_no_tensorrt_is_said_in_one_sentence():
    """Without the library the sentence names the extra to install."""
    with pytest.raises(DeviceUnavailable, match="make install EXTRAS=tensorrt"):
        find_library("tensorrt_that_is_not_here")
