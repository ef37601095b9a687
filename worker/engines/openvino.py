"""The CPU engine: OpenVINO, one film a request, as many requests at once as there are streams."""

from __future__ import annotations

import os
import queue
import sys
from collections import deque

import numpy as np
from numpy.typing import NDArray

# Importing openvino reports the import to its makers unless this package is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as ov

from dicom_node.errors import ConfigurationError
from worker.bundle import Bundle
from worker.findings import Inference
from worker.settings import WorkerSection


class OpenVinoEngine:
    """Runs `model.onnx` on the CPU. Any number of threads may call `infer`."""

    def __init__(self, bundle: Bundle, settings: WorkerSection) -> None:
        """Compile the model, or take it compiled from the cache.

        Raises:
            ConfigurationError: the model cannot be compiled on this machine.
        """
        core = ov.Core()
        self.name = f"openvino {ov.get_version().split('-')[0]}"
        # Half the time and the same score to 0.005 where the CPU multiplies it; emulated elsewhere.
        native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = "bf16" if native else "f32"
        cores = len(os.sched_getaffinity(0))
        threads = settings.engine_threads or cores
        options: dict[str, object] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": min(settings.concurrency, threads, cores),
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            # The decoders need the cores too, and other containers may.
            "ENABLE_CPU_PINNING": False,
        }
        size = bundle.manifest.size
        try:
            settings.engine_cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            core.set_property({"CACHE_DIR": str(settings.engine_cache)})
            model = core.read_model(bundle.model_path)
            # A fixed shape lets the compiler lay everything out; it is a third faster.
            model.reshape([1, 1, size, size])
            compiled = core.compile_model(model, "CPU", options)
            self._logit, self._cam = compiled.output("logit"), compiled.output("cam")
        except (RuntimeError, OSError) as error:
            raise ConfigurationError(f"OpenVINO cannot compile {bundle.model_path}: {error}.") from None
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
            self._idle.put(compiled.create_infer_request())

    def infer(self, pixels_B1HW: NDArray[np.float32]) -> Inference:
        """Run one forward pass; the films of a batch go through the streams side by side."""
        running: deque[ov.InferRequest] = deque()
        logits: list[NDArray[np.float32]] = []
        cams: list[NDArray[np.float32]] = []

        def collect() -> None:
            request = running.popleft()
            try:
                request.wait()
                logits.append(request.get_tensor(self._logit).data.reshape(1).copy())
                cams.append(request.get_tensor(self._cam).data[0].copy())
            finally:
                self._idle.put(request)

        for pixels_1HW in pixels_B1HW:
            # Who holds requests never waits for another: two batches would wait for each other.
            if running and self._idle.empty():
                collect()
            request = self._idle.get()
            running.append(request)
            request.start_async([np.ascontiguousarray(pixels_1HW[None])])
        while running:
            collect()
        return Inference(logits_B=np.concatenate(logits), cams_Bhw=np.stack(cams))

    def close(self) -> None:
        """Free the requests; the engine is of no use after."""
        while not self._idle.empty():
            self._idle.get()
