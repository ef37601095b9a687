"""The training loop: films in, a checkpoint after every epoch, the same run again after any stop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger
from training import checkpoint, datasets
from training.augment import augment, plain, shrink
from training.datasets import Row
from training.densenet import DenseNet121
from training.metrics import auroc
from training.provenance import RunRecord, commit, positive_weight
from training.settings import TrainingSettings

CHECKPOINT, CONFIGURATION, LOG = "checkpoint.safetensors", "configuration.json", "log.jsonl"
log = get_logger("train")


def train(settings: TrainingSettings, rows: Sequence[Row], inputs_NHW: NDArray[np.uint8], run: Path) -> Path:
    """Train, or go on where the run directory stopped.

    Args:
        settings: the run; the same run directory goes on only with the same settings and films.
        rows: the whole catalogue; only `trainable` ones are learnt from, `dev` is looked at.
        inputs_NHW: recipe outputs, `(N, 320, 320)`, in the order of `rows`.
        run: directory for configuration, log and checkpoint.

    Returns:
        The checkpoint's path.

    Raises:
        ConfigurationError: the checkpoint belongs to other settings or films.
    """
    torch.set_num_threads(settings.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(settings.seed)
    learnt = np.array([row.trainable for row in rows])
    watched = np.array([row.split == "dev" for row in rows])
    labels_N = datasets.targets(rows)
    weight = positive_weight(rows)
    model = DenseNet121().to(memory_format=torch.channels_last)
    average = checkpoint.average_of(model)
    optimiser = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight))
    identity: dict[str, object] = {
        "settings": settings.model_dump(mode="json"),
        "data": datasets.digest(rows),
    }
    path = run / CHECKPOINT
    begin = _resume(path, identity, model, average, optimiser)
    run.mkdir(parents=True, exist_ok=True)
    record = RunRecord(
        settings=settings,
        data=datasets.digest(rows),
        positive_weight=weight,
        commit=commit(),
        torch=torch.__version__,
    )
    (run / CONFIGURATION).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    views = _Views(inputs_NHW[learnt], labels_N[learnt], settings)
    steps = math.ceil(settings.films_per_epoch / settings.batch)
    for epoch in range(begin, settings.epochs):
        started, total = time.monotonic(), 0.0
        model.train()
        for step, (pixels, labels) in enumerate(views.batches(epoch)):
            _set_rate(optimiser, settings, (epoch + step / steps) / settings.epochs)
            optimiser.zero_grad(set_to_none=True)
            cost = loss(model(pixels)[0], labels)
            cost.backward()
            optimiser.step()
            checkpoint.follow(average, model, settings.average)
            total += cost.item()
        checkpoint.write_checkpoint(path, model, average, optimiser, identity | {"epoch": epoch + 1})
        entry: dict[str, object] = {
            "epoch": epoch + 1,
            "size": settings.size_of(epoch),
            "loss": total / steps,
        }
        if (epoch + 1) % settings.evaluate_every == 0 or epoch + 1 == settings.epochs:
            logits = infer(average, plain(inputs_NHW[watched], settings.size_of(epoch)))
            entry["dev_auroc"] = auroc(labels_N[watched], logits)
        entry["seconds"] = round(time.monotonic() - started, 1)
        with (run / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        log.info("epoch_done", **entry)
    return path


@torch.inference_mode()
def infer(model: nn.Module, inputs_NHW: NDArray[np.uint8], batch: int = 16) -> NDArray[np.float32]:
    """Logits `(N,)` of recipe outputs `(N, H, W)`."""
    model.eval()
    parts = [
        model(_pixels(inputs_NHW[start : start + batch]))[0] for start in range(0, len(inputs_NHW), batch)
    ]
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


class _Views:
    """Random views of the films, batch by batch; an epoch depends on seed and number only."""

    def __init__(
        self, inputs_NHW: NDArray[np.uint8], labels_N: NDArray[np.bool_], settings: TrainingSettings
    ) -> None:
        self._inputs_NHW, self._labels_N, self._settings = inputs_NHW, labels_N, settings
        self._size, self._films_NHW = 0, inputs_NHW

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        size, settings = self._settings.size_of(epoch), self._settings
        if size != self._size:
            self._size, self._films_NHW = size, shrink(self._inputs_NHW, size)
        random = np.random.default_rng((settings.seed, epoch))
        count = min(settings.films_per_epoch, len(self._labels_N))
        order = random.permutation(len(self._labels_N))[:count]
        for start in range(0, count, settings.batch):
            chosen = order[start : start + settings.batch]
            views = np.stack([augment(self._films_NHW[i], size, random) for i in chosen])
            yield _pixels(views), torch.from_numpy(self._labels_N[chosen].astype(np.float32))


def _pixels(inputs_BHW: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(inputs_BHW[:, None].astype(np.float32) / np.float32(255))


def _set_rate(optimiser: torch.optim.Optimizer, settings: TrainingSettings, progress: float) -> None:
    warm = 0.05
    factor = (
        progress / warm
        if progress < warm
        else 0.505 + 0.495 * math.cos(math.pi * (progress - warm) / (1 - warm))
    )
    for group in optimiser.param_groups:
        group["lr"] = settings.learning_rate * max(factor, 0.01)


def _resume(
    path: Path,
    identity: dict[str, object],
    model: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> int:
    if not path.exists():
        return 0
    metadata, tensors = checkpoint.read_checkpoint(path)
    epoch = metadata.pop("epoch")
    if metadata != json.loads(json.dumps(identity)):
        raise ConfigurationError(
            f"The run {path.parent} has other settings or films: choose a new directory."
        )
    checkpoint.restore(tensors, model, average, optimiser)
    return int(str(epoch))
