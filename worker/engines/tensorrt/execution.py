"""A plan on its card: one stream, fixed buffers, and for each batch size a CUDA graph that is replayed.

Everything here belongs to the thread that made it; `worker.engines.batching` sees to that.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import ConfigurationError
from worker.engines import DeviceUnavailable
from worker.engines.buckets import bucket_for
from worker.engines.tensorrt.builder import INPUT, OUTPUTS, PRECISION
from worker.engines.tensorrt.cuda import Cuda
from worker.engines.tensorrt.library import Library
from worker.findings import Inference

_FLOAT_BYTES = 4


class PlanRejected(ConfigurationError):
    """A plan that does not load: it was made by another version, or for another card."""


class _Tensor:
    """One input or output: pinned memory here, and memory on the card, for the largest batch."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...]) -> None:
        self._cuda = cuda
        self._row_bytes = math.prod(shape[1:]) * _FLOAT_BYTES
        count = math.prod(shape)
        self.device = int(cuda.call("cudaMalloc", count * _FLOAT_BYTES))
        self._host = int(cuda.call("cudaMallocHost", count * _FLOAT_BYTES))
        floats = (ctypes.c_float * count).from_address(self._host)
        self.values: NDArray[np.float32] = np.ctypeslib.as_array(floats).reshape(shape)

    def copy(self, rows: int, stream: Any, *, to_device: bool) -> None:
        """Enqueue the copy of the first rows."""
        kinds = self._cuda.runtime.cudaMemcpyKind
        there, here = self.device, self._host
        target, source = (there, here) if to_device else (here, there)
        kind = kinds.cudaMemcpyHostToDevice if to_device else kinds.cudaMemcpyDeviceToHost
        self._cuda.call("cudaMemcpyAsync", target, source, rows * self._row_bytes, kind, stream)


class PlanExecutor:
    """Runs a plan. Not for several threads."""

    precision = PRECISION

    def __init__(
        self, library: Library, cuda: Cuda, plan: bytes, *, buckets: Sequence[int], size: int
    ) -> None:
        """Load the plan and capture a graph for each bucket.

        Raises:
            PlanRejected: the plan does not load.
            DeviceUnavailable: the card does not do what it is asked for, or has too little memory.
        """
        self.name = f"{library.name} {library.version}"
        self.batches = tuple(buckets)
        self._cuda = cuda
        library.logger.last_error = ""
        runtime = library.trt.Runtime(library.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            why = library.logger.last_error or "it gave no reason"
            raise PlanRejected(f"{self.name} does not load its plan ({why}).")
        # The runtime must outlive its engine, and the engine its contexts.
        self._alive = [runtime, engine]
        self._stream = cuda.call("cudaStreamCreate")
        largest = buckets[-1]
        self._tensors = {
            name: _Tensor(cuda, (largest, *tuple(engine.get_tensor_shape(name))[1:]))
            for name in (INPUT, *OUTPUTS)
        }
        self._scratch = int(cuda.call("cudaMalloc", max(int(engine.device_memory_size_v2), 1)))
        self._graphs = {
            bucket: self._capture(library.trt, engine, profile, bucket, size)
            for profile, bucket in enumerate(buckets)
        }
        cuda.serve()

    def infer(self, pixels_B1HW: NDArray[np.float32]) -> Inference:
        """Run one batch.

        Raises:
            DeviceLost: the card failed.
            ConfigurationError: the batch is over the largest profile.
        """
        films = len(pixels_B1HW)
        graph = self._graphs[bucket_for(films, self.batches)]
        self._tensors[INPUT].values[:films] = pixels_B1HW
        self._cuda.call("cudaGraphLaunch", graph, self._stream)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        logits_B, cams_Bhw = (self._tensors[name].values[:films].copy() for name in OUTPUTS)
        return Inference(logits_B=logits_B, cams_Bhw=cams_Bhw)

    def close(self) -> None:
        """Let go of plan and graphs; the memory of the card goes back when the process ends."""
        # After a sticky error every release fails, and some block: the process is about to end anyway.
        self._graphs.clear()
        self._alive.clear()

    def _capture(self, trt: Any, engine: Any, profile: int, bucket: int, size: int) -> Any:
        """One graph: film to the card, network, results back.

        A context of its own, because changing the one that a graph was captured from breaks the graph. They
        run one after the other, and so share their scratch memory.
        """
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise DeviceUnavailable(
                f"TensorRT makes no context for batches of {bucket}: free GPU memory, or lower "
                "worker.max_batch."
            )
        self._alive.append(context)
        context.set_device_memory(self._scratch, max(int(engine.device_memory_size_v2), 1))
        stream = int(self._stream)
        accepted = context.set_optimization_profile_async(profile, stream)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        accepted = accepted and context.set_input_shape(INPUT, (bucket, 1, size, size))
        for name, tensor in self._tensors.items():
            accepted = accepted and context.set_tensor_address(name, tensor.device)
        # What is done lazily at a first run must not happen while a graph is captured.
        accepted = accepted and context.execute_async_v3(stream)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        if not accepted:
            raise PlanRejected(f"{self.name} does not run its plan for batches of {bucket}.")
        # Only this thread is captured: another may use the runtime meanwhile.
        mode = self._cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self._stream, mode)
        self._tensors[INPUT].copy(bucket, self._stream, to_device=True)
        context.execute_async_v3(stream)
        for name in OUTPUTS:
            self._tensors[name].copy(bucket, self._stream, to_device=False)
        graph = self._cuda.call("cudaStreamEndCapture", self._stream)
        made = self._cuda.call("cudaGraphInstantiate", graph, 0)
        self._cuda.call("cudaGraphDestroy", graph)
        return made
