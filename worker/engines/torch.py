"""The torch engine: half, channels-last and a CUDA graph for each batch size. On the CPU: the reference.

No other file of `worker` than this and `torch_network` loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dicom_node.errors import Retryable
from worker.bundle import Bundle
from worker.engines import DeviceLost, DeviceUnavailable
from worker.engines.buckets import bucket_for, buckets_up_to
from worker.engines.torch_network import Network
from worker.findings import Inference
from worker.settings import WorkerSection


def open_torch(bundle: Bundle, settings: WorkerSection) -> TorchEngine:
    """Load the model onto the GPU, in the thread that will run it.

    Raises:
        DeviceUnavailable: no GPU that torch can use, or too little memory.
        ConfigurationError: the model has an operator that this engine does not know.
    """
    if not torch.cuda.is_available():
        raise DeviceUnavailable(
            "torch finds no GPU that it can use: see nvidia-smi and CUDA_VISIBLE_DEVICES, or set "
            'worker.engine = "openvino" or worker.fallback = "cpu".'
        )
    return TorchEngine(bundle, torch.device("cuda", 0), batches=buckets_up_to(settings.max_batch))


class TorchEngine:
    """Runs `model.onnx` with torch. Not for several threads."""

    def __init__(self, bundle: Bundle, device: torch.device, *, batches: Sequence[int] = (1,)) -> None:
        """Load the model; on a GPU warm up and capture a graph for each batch size.

        Args:
            bundle: the model.
            device: a GPU, or the CPU.
            batches: sizes to capture. On the CPU batches of any size are taken.

        Raises:
            DeviceUnavailable: too little memory, or a GPU that torch cannot use.
            ConfigurationError: the model has an operator that this engine does not know.
        """
        self._device = device
        self._gpu = device.type == "cuda"
        self.name = f"torch {torch.__version__.split('+')[0]}"
        self.precision = "f16" if self._gpu else "f32"
        self.batches = tuple(batches)
        self._graphs: dict[int, Callable[[], None]] = {}
        self._outputs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._pool: Any = None
        if not self._gpu:
            self._network = Network(bundle.model(), device, torch.float32)
            return
        size, largest = bundle.manifest.size, self.batches[-1]
        try:
            self._network = Network(bundle.model(), device, torch.float16)
            self._pixels_B1HW = torch.zeros((largest, 1, size, size), device=device)
            self._pinned_B1HW = torch.zeros((largest, 1, size, size), pin_memory=True)
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            # The weights were laid out on another stream than the one that runs.
            torch.cuda.synchronize(device)
            # The largest first: the others fit into its memory.
            for batch in reversed(self.batches):
                self._graphs[batch] = self._capture(batch)
        except RuntimeError as error:
            raise _unavailable(error) from None

    def infer(self, pixels_B1HW: NDArray[np.float32]) -> Inference:
        """Run one batch.

        Raises:
            DeviceLost: the GPU failed.
            Retryable: too little memory at this time.
            ConfigurationError: the batch is larger than the largest that was captured.
        """
        films = len(pixels_B1HW)
        try:
            if self._gpu:
                logits_B, cams_Bhw = self._replay(bucket_for(films, self.batches), pixels_B1HW)
            else:
                with torch.inference_mode():
                    logits_B, cams_Bhw = self._network(torch.from_numpy(pixels_B1HW))
            return Inference(
                logits_B=logits_B[:films].cpu().numpy().copy(), cams_Bhw=cams_Bhw[:films].cpu().numpy().copy()
            )
        except torch.OutOfMemoryError:
            raise Retryable("torch has too little memory at this time; the study is tried again.") from None
        except RuntimeError as error:
            if not (self._gpu and _is_lost(error)):
                raise Retryable("torch failed on this machine; the study is tried again.") from None
            raise DeviceLost(
                f"The GPU failed ({_first_line(error)}): this process ends, and its studies go to another."
            ) from None

    def close(self) -> None:
        """Let go of the graphs and their memory."""
        self._graphs.clear()
        self._outputs.clear()

    def _replay(self, batch: int, pixels_B1HW: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
        films = len(pixels_B1HW)
        self._pinned_B1HW[:films].numpy()[:] = pixels_B1HW
        with torch.cuda.stream(self._stream):
            self._pixels_B1HW[:films].copy_(self._pinned_B1HW[:films], non_blocking=True)
            self._graphs[batch]()
        self._stream.synchronize()
        return self._outputs[batch]

    def _capture(self, batch: int) -> Callable[[], None]:
        pixels_B1HW = self._pixels_B1HW[:batch]
        with torch.inference_mode():
            with torch.cuda.stream(self._stream):
                # What libraries do at a first run must not happen while a graph is captured.
                for _ in range(3):
                    self._network(pixels_B1HW)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Only this thread is captured: another may use the runtime meanwhile.
            capture = torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            )
            with capture:
                self._outputs[batch] = self._network(pixels_B1HW)
            self._pool = graph.pool()
        return graph.replay


def _is_lost(error: RuntimeError) -> bool:
    """Whether the device failed, and not one call: after a sticky error nothing works any more."""
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _unavailable(error: RuntimeError) -> DeviceUnavailable:
    if isinstance(error, torch.OutOfMemoryError):
        return DeviceUnavailable(
            "The GPU has too little free memory for this engine: stop what else runs on it, lower "
            "worker.max_batch, or give this worker another with CUDA_VISIBLE_DEVICES."
        )
    return DeviceUnavailable(
        f"torch cannot use this GPU ({_first_line(error)}): see nvidia-smi, or set another worker.engine."
    )


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
