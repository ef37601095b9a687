"""What the execution makes of failures, with a card and a TensorRT that are played: none fails to order."""

from __future__ import annotations

import ctypes
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from worker.engines import DeviceLost, DeviceUnavailable
from worker.engines.select import _batched
from worker.engines.tensorrt.cuda import Card, Cuda
from worker.engines.tensorrt.engine import require_support
from worker.engines.tensorrt.execution import PlanExecutor, PlanRejected
from worker.engines.tensorrt.library import Library
from worker.settings import WorkerSection


class Status(int):
    """A CUDA status with its name."""

    name = "cudaErrorIllegalAddress"


class Runtime:
    """`cuda.bindings.runtime`, which counts what is taken and given back, and fails where it is told."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.called, self.fails, self._kept = Counter(), set(), []

    def __getattr__(self, name):
        def call(*arguments):
            self.called[name] += 1
            if name in self.fails:
                return Status(700), None
            if name == "cudaMallocHost":
                self._kept.append(ctypes.create_string_buffer(arguments[0]))
                return Status(0), ctypes.addressof(self._kept[-1])
            gives = name.endswith(("Malloc", "Create", "Flags", "EndCapture", "Instantiate"))
            return (Status(0), 7) if gives else (Status(0),)

        return call


class Context:
    """An execution context; it runs as often as `runs` says."""

    def __init__(self, runs):
        self.runs = runs

    def execute_async_v3(self, stream):
        self.runs -= 1
        return self.runs >= 0

    def __getattr__(self, name):
        return lambda *arguments: True


@pytest.fixture
def played():
    """`played(runs=2, plan=True)`: library and card; every context runs so often."""

    def make(*, runs=99, plan=True):
        engine = SimpleNamespace(
            get_tensor_shape=lambda name: {"pixels": (-1, 1, 8, 8), "logit": (-1,), "cam": (-1, 2, 2)}[name],
            device_memory_size_v2=64,
            create_execution_context=lambda strategy: Context(runs),
        )
        trt = SimpleNamespace(
            Runtime=lambda logger: SimpleNamespace(
                deserialize_cuda_engine=lambda _: engine if plan else None
            ),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=1),
        )
        cuda = Cuda.__new__(Cuda)
        cuda.runtime, cuda._serving, cuda.lost = Runtime(), False, False
        logger = SimpleNamespace(last_error="out of workspace")
        return Library(trt=trt, logger=logger, name="tensorrt", version="11.0"), cuda

    return make


def opened(library, cuda):
    return PlanExecutor(library, cuda, b"plan", buckets=(1, 2), size=8)


def balance(called):
    """What was taken and not given back."""
    pairs = {
        "cudaMalloc": "cudaFree",
        "cudaMallocHost": "cudaFreeHost",
        "cudaStreamCreateWithFlags": "cudaStreamDestroy",
        "cudaGraphInstantiate": "cudaGraphExecDestroy",
        "cudaStreamBeginCapture": "cudaStreamEndCapture",
    }
    return {
        taken: called[taken] - called[given]
        for taken, given in pairs.items()
        if called[taken] != called[given]
    }


def test_closing_gives_everything_back(played):
    """Memory, stream and graphs: another engine may be opened in this process. A second close is nothing."""
    library, cuda = played()
    executor = opened(library, cuda)
    assert executor.infer(np.zeros((2, 1, 8, 8), np.float32)).cams_Bhw.shape == (2, 2, 2)
    assert balance(cuda.runtime.called)
    executor.close()
    executor.close()
    assert balance(cuda.runtime.called) == {}


def test_a_run_that_is_not_captured_is_refused(played):
    """The warm run is taken and the captured one is not: its graph would repeat the results of the first."""
    library, cuda = played(runs=1)
    with pytest.raises(DeviceUnavailable, match="does not let its run be captured for batches of 1"):
        opened(library, cuda)
    assert balance(cuda.runtime.called) == {}


def test_a_card_that_is_too_full_rejects_no_plan(played):
    """A plan that loads and does not run is a good plan: it is not thrown away and built again."""
    library, cuda = played(runs=0)
    with pytest.raises(
        DeviceUnavailable, match=r"does not run its plan .*lower worker\.max_batch"
    ) as refusal:
        opened(library, cuda)
    assert not isinstance(refusal.value, PlanRejected)
    assert balance(cuda.runtime.called) == {}


def test_a_plan_that_does_not_load_is_rejected(played):
    """It is of another version or card, whatever its key says."""
    with pytest.raises(PlanRejected, match="does not load its plan"):
        opened(*played(plan=False))


def test_a_failed_copy_ends_its_capture(played):
    """The stream is free again, and nothing is asked of a card that is lost."""
    library, cuda = played()
    cuda.runtime.fails.add("cudaMemcpyAsync")
    with pytest.raises(DeviceLost, match="cudaErrorIllegalAddress in cudaMemcpyAsync"):
        opened(library, cuda)
    assert cuda.lost
    assert cuda.runtime.called["cudaStreamBeginCapture"] == cuda.runtime.called["cudaStreamEndCapture"] == 1
    assert not cuda.runtime.called["cudaFree"]


def test_a_tensorrt_that_does_not_start_is_not_here(played):
    """Its binding says TypeError where CUDA cannot be initialised; the sentence has what TensorRT said."""
    library, _ = played()

    def nothing(logger):
        logger.last_error = "CUDA initialization failure with error: 35"
        raise TypeError("pybind11::init(): factory function returned nullptr")

    library.trt.Builder = nothing
    with pytest.raises(DeviceUnavailable, match=r"does not start .*failure with error: 35.*worker\.engine"):
        library.start("Builder")


@pytest.mark.parametrize(("capability", "runs"), [("8.9", True), ("9.0", False)])
def test_a_card_that_rtx_does_not_know_is_refused_before_the_build(library, capability, runs):
    """TensorRT-RTX builds for a data-centre card and does not load the plan: it is said at once."""
    card = Card(name="NVIDIA X", compute_capability=capability, driver="580.65", memory_bytes=1 << 30)
    if runs:
        require_support(library, card)
        return
    with pytest.raises(DeviceUnavailable, match=r"does not run on NVIDIA X .*9\.0.*install tensorrt"):
        require_support(library, card)


def test_every_batch_size_that_serves_was_tried():
    """`max_batch` is rounded up to a bucket, so that the gate sees the one that padded batches take."""
    engine = SimpleNamespace(name="e", precision="f16", batches=(1, 2, 4, 8), close=lambda: None)
    batcher = _batched(lambda: engine, WorkerSection(max_batch=6))
    assert batcher.batches == (1, 2, 4, 8)
    batcher.close()
