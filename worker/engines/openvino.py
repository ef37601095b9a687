"""The CPU engine: OpenVINO, one film a request, as many requests at once as there are streams."""

from __future__ import annotations

import os
import queue
import sys
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import ConfigurationError, Retryable
from worker.bundle import Bundle
from worker.findings import Inference
from worker.settings import WorkerSection

if TYPE_CHECKING:
    from openvino import InferRequest


class OpenVinoEngine:
    """Runs `model.onnx`, or its eight-bit form, on the CPU. Any number of threads may call `infer`."""

    batches: tuple[int, ...] = (1,)
    pinned: bool
    """Whether its threads keep their cores; OpenVINO does so only where the machine lets it."""

    def __init__(self, bundle: Bundle, settings: WorkerSection) -> None:
        """Compile the model, or take it compiled from the cache.

        Raises:
            ConfigurationError: the model cannot be compiled on this machine.
        """
        # Importing openvino reports the import to its makers, unless this package is missing.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino as ov  # noqa: PLC0415

        core = ov.Core()
        self.name = f"openvino {ov.get_version().split('-')[0]}"
        # Half the time and the same score to 0.005 where the CPU multiplies it; emulated elsewhere.
        native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        arithmetic = "bf16" if native else "f32"
        model_path = bundle.network_path(settings.engine_precision)
        self.precision = "int8" if settings.engine_precision == "int8" else arithmetic
        cores = len(os.sched_getaffinity(0))
        threads = settings.engine_threads or cores
        options: dict[str, object] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": min(settings.concurrency, threads, cores),
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": arithmetic,
            # The decoders need the cores too, and other containers may.
            "ENABLE_CPU_PINNING": settings.engine_pinning,
        }
        size = bundle.manifest.size
        try:
            settings.engine_cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            core.set_property({"CACHE_DIR": str(settings.engine_cache)})
            model = core.read_model(model_path)
            # A fixed shape lets the compiler lay everything out; it is a third faster.
            model.reshape([1, 1, size, size])
            compiled = core.compile_model(model, "CPU", options)
            self._logit, self._cam = compiled.output("logit"), compiled.output("cam")
        except (RuntimeError, OSError) as error:
            raise ConfigurationError(f"OpenVINO cannot compile {model_path}: {error}.") from None
        self.pinned = bool(compiled.get_property("ENABLE_CPU_PINNING"))
        self._idle: queue.SimpleQueue[InferRequest] = queue.SimpleQueue()
        for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
            self._idle.put(compiled.create_infer_request())

    def infer(self, pixels_B1HW: NDArray[np.float32]) -> Inference:
        """Run one forward pass; the films of a batch go through the streams side by side.

        Raises:
            Retryable: OpenVINO failed on this machine at this time (memory, for one).
        """
        held: list[InferRequest] = []
        running: deque[InferRequest] = deque()
        found: list[tuple[np.float32, NDArray[np.float32]]] = []
        try:
            for pixels_1HW in pixels_B1HW:
                request = self._take(held)
                if request is None:
                    request = running.popleft()
                    found.append(self._collect(request))
                request.start_async([np.ascontiguousarray(pixels_1HW[None])])
                running.append(request)
            found += [self._collect(request) for request in running]
        except RuntimeError:
            raise Retryable("OpenVINO failed on this machine; the study is tried again.") from None
        finally:
            for request in held:
                self._idle.put(request)
        return Inference(
            logits_B=np.array([logit for logit, _ in found], np.float32),
            cams_Bhw=np.stack([cam for _, cam in found]),
        )

    def close(self) -> None:
        """Free the requests; the engine is of no use after."""
        while not self._idle.empty():
            self._idle.get()

    def _take(self, held: list[InferRequest]) -> InferRequest | None:
        # Who holds a request never waits for another: two batches would wait for each other.
        try:
            request = self._idle.get(block=not held)
        except queue.Empty:
            return None
        held.append(request)
        return request

    def _collect(self, request: InferRequest) -> tuple[np.float32, NDArray[np.float32]]:
        request.wait()
        logit_B, cam_Bhw = (request.get_tensor(output).data for output in (self._logit, self._cam))
        return np.float32(logit_B[0]), cam_Bhw[0].copy()
