"""A plan on its card: one stream, fixed buffers, and for each batch size a CUDA graph that is replayed.

Everything here belongs to the thread that made it; `worker.engines.batching` sees to that.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import ConfigurationError, CovarianceError
from worker.engines import DeviceLost, DeviceUnavailable
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

    def free(self) -> None:
        """Give the memory back; `values` must not be used any more."""
        del self.values
        self._cuda.call("cudaFree", self.device)
        self._cuda.call("cudaFreeHost", self._host)


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
            DeviceLost: it failed.
        """
        self.name = f"{library.name} {library.version}"
        self.batches = tuple(buckets)
        self._cuda = cuda
        self._library = library
        runtime = library.start("Runtime")
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            why = library.logger.last_error or "it gave no reason"
            raise PlanRejected(f"{self.name} does not load its plan ({why}).")
        # The runtime must outlive its engine, and the engine its contexts.
        self._alive = [runtime, engine]
        # Not in step with the stream of whoever names none, which could not be used during a capture.
        self._stream = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)
        self._tensors: dict[str, _Tensor] = {}
        self._graphs: dict[int, Any] = {}
        self._scratch = 0
        try:
            for name in (INPUT, *OUTPUTS):
                self._tensors[name] = _Tensor(cuda, (buckets[-1], *tuple(engine.get_tensor_shape(name))[1:]))
            self._scratch = int(cuda.call("cudaMalloc", max(int(engine.device_memory_size_v2), 1)))
            for profile, bucket in enumerate(buckets):
                self._graphs[bucket] = self._capture(engine, profile, bucket, size)
        except CovarianceError:
            # Another engine may be tried in this process, and needs the memory.
            self.close()
            raise
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
        """Give plan, graphs and memory back, unless the card is lost."""
        if self._cuda.lost or not self._alive:
            # After a sticky error every release fails, and some block: the process is about to end anyway.
            return
        with contextlib.suppress(DeviceLost, DeviceUnavailable):
            self._cuda.call("cudaStreamSynchronize", self._stream)
            for graph in self._graphs.values():
                self._cuda.call("cudaGraphExecDestroy", graph)
            self._graphs.clear()
            # Contexts before their engine, and that before its runtime.
            while self._alive:
                self._alive.pop()
            for tensor in self._tensors.values():
                tensor.free()
            self._tensors.clear()
            if self._scratch:
                self._cuda.call("cudaFree", self._scratch)
            self._cuda.call("cudaStreamDestroy", self._stream)

    def _capture(self, engine: Any, profile: int, bucket: int, size: int) -> Any:
        """One graph: film to the card, network, results back.

        A context of its own, because changing the one that a graph was captured from breaks the graph. They
        run one after the other, and so share their scratch memory.
        """
        strategies = self._library.trt.ExecutionContextAllocationStrategy
        context = engine.create_execution_context(strategies.USER_MANAGED)
        if context is None:
            raise self._refused("makes no context", bucket)
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
            raise self._refused("does not run its plan", bucket)
        # Only this thread is captured: another may use the runtime meanwhile.
        mode = self._cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            self._tensors[INPUT].copy(bucket, self._stream, to_device=True)
            taken = context.execute_async_v3(stream)
            for name in OUTPUTS:
                self._tensors[name].copy(bucket, self._stream, to_device=False)
        finally:
            # Whatever came of it, the stream must not stay in its capture.
            status, graph = self._cuda.runtime.cudaStreamEndCapture(self._stream)
        # Without the network in it, a graph would give the results of the run before, again and again.
        if not taken or int(status) != 0:
            raise self._refused("does not let its run be captured", bucket)
        made = self._cuda.call("cudaGraphInstantiate", graph, 0)
        self._cuda.call("cudaGraphDestroy", graph)
        return made

    def _refused(self, what: str, bucket: int) -> DeviceUnavailable:
        why = self._library.logger.last_error or "it gave no reason"
        return DeviceUnavailable(
            f"{self.name} {what} for batches of {bucket} ({why}): free GPU memory, lower worker.max_batch, "
            "or set another worker.engine."
        )
