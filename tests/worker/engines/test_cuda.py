"""What a CUDA error means, and that the runtime has the calls that we make."""

from __future__ import annotations

import pytest

from worker.engines import DeviceLost, DeviceUnavailable
from worker.engines.tensorrt.cuda import Cuda, driver_is_here, failure


def test_an_error_at_the_start_is_the_operator_s():
    """While the engine is opened an error says what to look at, and which settings help."""
    error = failure("cudaErrorNoDevice", "cudaSetDevice", serving=False)
    assert isinstance(error, DeviceUnavailable)
    assert "nvidia-smi" in str(error)


def test_too_little_memory_is_said():
    """A card that is too full is another matter than none."""
    error = failure("cudaErrorMemoryAllocation", "cudaMalloc", serving=False)
    assert isinstance(error, DeviceUnavailable)
    assert "too little free memory" in str(error)
    assert "worker.max_batch" in str(error)


@pytest.mark.parametrize("serving", [False, True])
def test_an_error_under_way_is_a_lost_device(serving):
    """Most errors are sticky: the process ends, and no other engine is opened in it, even at the start."""
    error = failure("cudaErrorIllegalAddress", "cudaStreamSynchronize", serving=serving)
    assert isinstance(error, DeviceLost)
    assert "cudaErrorIllegalAddress in cudaStreamSynchronize" in str(error)


@pytest.mark.skipif(driver_is_here(), reason="this machine has a GPU")
def test_the_runtime_takes_the_calls_that_we_make():
    """Every call of the execution exists in cuda-bindings and takes our arguments: none is a TypeError."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    # The constructor already refuses on a machine without a GPU; here its calls are what is tested.
    cuda = Cuda.__new__(Cuda)
    cuda.runtime, cuda._serving, cuda.lost = runtime, False, False
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    calls = {
        "cudaGetDeviceCount": (),
        "cudaSetDevice": (0,),
        "cudaGetDeviceProperties": (0,),
        "cudaMalloc": (4,),
        "cudaMallocHost": (4,),
        "cudaStreamCreateWithFlags": (runtime.cudaStreamNonBlocking,),
        "cudaStreamDestroy": (0,),
        "cudaFree": (4,),
        "cudaFreeHost": (4,),
        "cudaGraphExecDestroy": (0,),
        "cudaMemcpyAsync": (0, 0, 0, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, 0),
        "cudaStreamBeginCapture": (0, mode),
        "cudaStreamEndCapture": (0,),
        "cudaGraphInstantiate": (0, 0),
        "cudaGraphDestroy": (0,),
        "cudaGraphLaunch": (0, 0),
        "cudaStreamSynchronize": (0,),
    }
    for name, arguments in calls.items():
        with pytest.raises(DeviceUnavailable, match="cudaError"):
            cuda.call(name, *arguments)
    assert cuda.call("cudaDriverGetVersion") == 0
