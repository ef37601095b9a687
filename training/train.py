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
from training import checkpoint, outside, tasks
from training.bundle.provenance import RunRecord, commit, in_turn, positive_weight
from training.device import Device, best_device
from training.evaluation.metrics import auroc
from training.files import write_whole
from training.films import datasets
from training.films.augment import augment, plain, shrink
from training.films.datasets import Row
from training.networks.densenet import DenseNet121
from training.networks.importers import load_init
from training.settings import TrainingSettings

CHECKPOINT, CONFIGURATION, LOG = "checkpoint.safetensors", "configuration.json", "log.jsonl"
log = get_logger("train")


def train(settings: TrainingSettings, rows: Sequence[Row], inputs_NHW: NDArray[np.uint8], run: Path) -> Path:
    """Train, or go on where the run directory stopped.

    A run goes on with the settings and films that it was begun with. Only the stages ahead may be planned
    anew; the configuration and the model card then say after which epoch.

    Args:
        settings: the run.
        rows: the whole catalogue; only `trainable` ones are learnt from, `dev` is looked at.
        inputs_NHW: recipe outputs, `(N, SIZE, SIZE)`, in the order of `rows`.
        run: directory for configuration, log and checkpoint.

    Returns:
        The checkpoint's path.

    Raises:
        ConfigurationError: the checkpoint belongs to other settings or films, or the loss is no number.
    """
    torch.set_num_threads(settings.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(settings.seed)
    device = best_device()
    learnt = np.array([row.trainable and row.origin not in settings.leave_out for row in rows])
    learner = _Learner(settings, 1.0 if settings.sampling == "balanced" else positive_weight(rows), device)
    record, begin = _begin(settings, rows, run / CHECKPOINT, learner)
    run.mkdir(parents=True, exist_ok=True)
    write_whole(run / CONFIGURATION, record.model_dump_json(indent=2) + "\n")
    lines = (run / LOG).read_text(encoding="utf-8").splitlines() if (run / LOG).exists() else []
    write_whole(run / LOG, "".join(f"{line}\n" for line in lines[:begin]))
    views = _Views(inputs_NHW[learnt], [r for r, use in zip(rows, learnt, strict=True) if use], settings)
    dev = np.array([row.split == "dev" for row in rows])
    dev_targets_NT = tasks.targets([row for row in rows if row.split == "dev"])
    for epoch in range(begin, settings.epochs):
        started, size, done = time.monotonic(), settings.size_of(epoch), epoch + 1
        entry: dict[str, object] = {"epoch": done, "size": size, "loss": learner.learn(views, epoch)}
        if done % settings.evaluate_every == 0 or done == settings.epochs:
            logits_NT = learner.infer(plain(inputs_NHW[dev], size))
            entry |= _aurocs(settings, dev_targets_NT, logits_NT)
        entry["seconds"] = round(time.monotonic() - started, 1)
        with (run / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        # Last: a run that goes on takes back what the log has beyond the checkpoint.
        learner.save(run / CHECKPOINT, record, done)
        log.info("epoch_done", **entry)
    return run / CHECKPOINT


def load_network(run: Path) -> DenseNet121:
    """The averaged network of a run, without the heads that only taught it.

    Raises:
        ConfigurationError: there is no checkpoint, it is of another network, or the run is not over.
    """
    network = DenseNet121()
    require_over(checkpoint.load_average(run / CHECKPOINT, tasks.MultiTask(network)), run)
    return network


def require_over(metadata: dict[str, object], run: Path) -> None:
    """Refuse a run that is not over. Raises `ConfigurationError`."""
    record, epochs = _made(metadata, run)
    if epochs < record.settings.epochs:
        raise ConfigurationError(
            f"The run {run} is not over: {epochs} of {record.settings.epochs} epochs are done."
        )


@torch.inference_mode()
def infer(model: nn.Module, inputs_NHW: NDArray[np.uint8], batch: int = 16) -> NDArray[np.float32]:
    """Logits `(N,)` of recipe outputs `(N, H, W)`, in float32."""
    model.eval()
    parts = [
        model(pixels(inputs_NHW[start : start + batch]))[0] for start in range(0, len(inputs_NHW), batch)
    ]
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def _aurocs(
    settings: TrainingSettings, targets_NT: NDArray[np.float32], logits_NT: NDArray[np.float32]
) -> dict[str, float]:
    """Of each task that is learnt and that dev has both classes of; the findings as their mean."""
    found: dict[str, float] = {}
    for column, name in enumerate(tasks.TASKS):
        known_N = ~np.isnan(targets_NT[:, column])
        labels = targets_NT[known_N, column] == 1
        weight = getattr(settings.weights, "findings" if name in tasks.FINDINGS else name)
        if weight and 0 < labels.sum() < len(labels):
            found[name] = auroc(labels, logits_NT[known_N, column])
    findings = [found.pop(name) for name in tasks.FINDINGS if name in found]
    mean = {"findings": float(np.mean(findings))} if findings else {}
    return {
        f"dev_auroc{'' if name == 'covid' else f'_{name}'}": area for name, area in (found | mean).items()
    }


class _Views:
    """Random views of the films, batch by batch; an epoch depends on seed and number only."""

    def __init__(
        self, inputs_NHW: NDArray[np.uint8], rows: Sequence[Row], settings: TrainingSettings
    ) -> None:
        self._inputs_NHW, self._targets_NT, self._settings = inputs_NHW, tasks.targets(rows), settings
        self._size, self._films_NHW = 0, inputs_NHW
        balanced = settings.sampling == "balanced"
        self._chances_N = tasks.strata(rows, settings.opacity_share) if balanced else None
        self._count = settings.films_per_epoch if balanced else min(settings.films_per_epoch, len(rows))
        self.steps = math.ceil(self._count / settings.batch)

    def batches(self, epoch: int) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
        """Views `(B, size, size)` and what is known of them `(B, T)`."""
        size, batch = self._settings.size_of(epoch), self._settings.batch
        if size != self._size:
            self._size, self._films_NHW = size, shrink(self._inputs_NHW, size)
        random = np.random.default_rng((self._settings.seed, epoch))
        films = len(self._targets_NT)
        if self._chances_N is None:
            order = random.permutation(films)[: self._count]
        else:
            order = random.choice(films, self._count, p=self._chances_N)
        for start in range(0, self._count, batch):
            chosen = order[start : start + batch]
            views = np.stack([augment(self._films_NHW[i], size, random) for i in chosen])
            yield views, torch.from_numpy(self._targets_NT[chosen])


class _Learner:
    """The network, its average and its optimiser."""

    def __init__(self, settings: TrainingSettings, weight: float, device: Device) -> None:
        self.settings, self.device = settings, device
        network = DenseNet121()
        self.init = load_init(network, settings.init)
        self.model = tasks.MultiTask(network)
        device.place(self.model)
        self.average = checkpoint.average_of(self.model)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        shares = settings.weights
        self._loss = tasks.TaskLoss((shares.covid, shares.opacity, shares.view, shares.findings), weight).to(
            device.device
        )

    def learn(self, views: _Views, epoch: int) -> float:
        """One epoch; the mean loss of its steps. Raises `ConfigurationError` where that is no number."""
        self.model.train()
        features = self.model.network.features.requires_grad_(epoch >= self.settings.head_epochs)
        features.train(epoch >= self.settings.head_epochs)
        total = 0.0
        for step, (views_BHW, targets_BT) in enumerate(views.batches(epoch)):
            rate = self.settings.rate_at(epoch + step / views.steps)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.zero_grad(set_to_none=True)
            with self.device.autocast():
                logits_BT, cams_Bhw = self.model(pixels(views_BHW).to(self.device.device))
            loss = self._loss(logits_BT, targets_BT.to(self.device.device))
            if self.settings.weights.lungs:
                lungs_Bhw = outside.lungs_of(views_BHW, cams_Bhw.shape[-1]).to(self.device.device)
                loss = loss + self.settings.weights.lungs * outside.share_outside(cams_Bhw, lungs_Bhw)
            loss.backward()
            self.optimiser.step()
            checkpoint.follow(self.average, self.model, self.settings.average)
            total += loss.item()
        checkpoint.require_number(total, epoch + 1)
        return total / views.steps

    @torch.inference_mode()
    def infer(self, inputs_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits `(N, T)` of the average, in the precision of training."""
        parts = []
        for start in range(0, len(inputs_NHW), self.settings.batch):
            with self.device.autocast():
                films_B1HW = pixels(inputs_NHW[start : start + self.settings.batch])
                parts.append(self.average(films_B1HW.to(self.device.device))[0])
        logits: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return logits

    def save(self, path: Path, record: RunRecord, epochs: int) -> None:
        metadata = {"run": record.model_dump(mode="json"), "epochs": epochs}
        checkpoint.write_checkpoint(path, self.model, self.average, self.optimiser, metadata)


def pixels(inputs_BHW: NDArray[np.uint8]) -> Tensor:
    """Recipe outputs `(B, H, W)` as the network takes them, `(B, 1, H, W)` in [0, 1]."""
    return torch.from_numpy(inputs_BHW[:, None].astype(np.float32) / np.float32(255))


def _begin(
    settings: TrainingSettings, rows: Sequence[Row], path: Path, learner: _Learner
) -> tuple[RunRecord, int]:
    """The run's record, and how many epochs its checkpoint has behind it."""
    record = RunRecord(
        settings=settings,
        data=datasets.digest(rows),
        positive_weight=positive_weight(rows),
        commit=commit(),
        torch=torch.__version__,
        init=learner.init,
        precision=learner.device.precision,
    )
    if not path.exists():
        return record, 0
    metadata, tensors = checkpoint.read_checkpoint(path)
    before, epochs = _made(metadata, path.parent)
    if before.data != record.data or not settings.goes_on(before.settings, epochs):
        raise ConfigurationError(
            f"The run {path.parent} has other settings or films: choose a new directory."
        )
    if epochs == settings.epochs:
        return before, epochs
    if before.precision != record.precision:
        raise ConfigurationError(
            f"The run {path.parent} was begun in {before.precision}, and this machine computes in "
            f"{record.precision}: go on where it began, or choose a new directory."
        )
    checkpoint.restore(tensors, learner.model, learner.average, learner.optimiser)
    anew = before.planned_anew + ((epochs,) if before.settings != settings else ())
    kept = {"planned_anew": anew, "mean_of": before.mean_of, "init": before.init}
    kept |= {key: in_turn(getattr(before, key), getattr(record, key)) for key in ("commit", "torch")}
    return record.model_copy(update=kept), epochs


def _made(metadata: dict[str, object], run: Path) -> tuple[RunRecord, int]:
    """What a checkpoint says of itself. Raises `ConfigurationError` where it is not of such a run."""
    try:
        return RunRecord.model_validate(metadata["run"]), int(str(metadata["epochs"]))
    except (KeyError, ValueError):
        raise ConfigurationError(f"The checkpoint of {run} is of another version or network.") from None
