"""Train the systems of the report, one after the other; what is done is not done again.

A run stops anywhere and goes on from its last checkpoint. What an interrupted epoch had learnt is lost,
and nothing else: order, dropout and everything random depend on the seed and the epoch's number only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger
from training import checkpoint
from training.bundle.provenance import commit, in_turn
from training.device import Device
from training.evaluation.metrics import auroc
from training.files import write_whole
from training.films import datasets
from training.films.datasets import Row
from training.networks.baseline_cnn import BaselineCNN
from training.networks.densenet import DenseNet121
from training.networks.freeze import Frozen
from training.networks.importers import load_init
from training.networks.resnet import ResNet18
from training.sweep import runs
from training.sweep.runs import Epoch, Predictions, RunConfiguration
from training.sweep.systems import System

log = get_logger("reproduce")
CHECKPOINT_EVERY = 300.0
"""Seconds between checkpoints at least; the baseline CNN's is 3 GB."""


@dataclass(frozen=True, kw_only=True)
class Films:
    """The rows of the report's subset, and films beside it that are measured only."""

    rows: tuple[Row, ...]
    load: Callable[[int], NDArray[np.uint8]]
    """Films `(N, size, size)` of all rows."""
    split: str
    """`patient` or `image`."""

    def places(self, split: str) -> NDArray[np.intp]:
        """Indices of a split's rows of the subset."""
        return np.flatnonzero([row.seedlike and row.split == split for row in self.rows])


def report_films(
    rows: Sequence[Row], load: Callable[[Sequence[Row], int], NDArray[np.uint8]], split: str
) -> Films:
    """The report's subset, and the source-balanced films of patients that it does not learn from.

    Raises:
        ConfigurationError: a split of the subset lacks a class.
    """
    learnt = {row.patient_group for row in rows if row.seedlike and row.split == "train"}
    kept = tuple(r for r in rows if r.seedlike or (r.source_balanced and r.patient_group not in learnt))
    for name in datasets.SPLITS:
        if len({row.positive for row in kept if row.seedlike and row.split == name}) != 2:
            raise ConfigurationError(f"The report's subset has no film of one class in `{name}`.")
    return Films(rows=kept, load=lambda size: load(kept, size), split=split)


def build(system: System, init: str) -> tuple[nn.Module, str]:
    """A system's network, and what its weights are begun with."""
    torch.manual_seed(system.seed)
    if system.network == "baseline-cnn":
        return BaselineCNN(system.size, regularised=system.regularised), "random"
    if system.network == "resnet-18":
        return ResNet18(), "random"
    model = DenseNet121()
    loaded = load_init(model, init)
    return Frozen(model, system.trainable, updating=system.frozen_statistics == "updating"), loaded


def reproduce(system: System, films: Films, run: Path, device: Device, init: str = "random") -> None:
    """Train a system to its end and write its predictions, or go on where it stopped.

    Args:
        system: what is trained, and how.
        films: what it is trained on and measured on.
        run: its directory.
        device: what it is computed on.
        init: weights that DenseNet-121 begins with, see `importers.load_init`.

    Raises:
        ConfigurationError: the directory holds a run of another system, data or beginning.
    """
    network, loaded = build(system, init)
    configuration = RunConfiguration(
        system=system,
        init=loaded,
        split=films.split,
        data=datasets.digest(films.rows),
        commit=commit(),
        torch=torch.__version__,
        device=device.name,
        precision=device.precision,
    )
    if _is_done(run, configuration):
        log.info("already_done", system=system.name)
        return
    if (run / runs.CONFIGURATION).exists():
        configuration = _begun_by(runs.read_configuration(run), configuration)
    run.mkdir(parents=True, exist_ok=True)
    write_whole(run / runs.CONFIGURATION, configuration.model_dump_json(indent=2) + "\n")
    trainer = Trainer(system, films, device, network)
    begin = trainer.resume(run)
    with SummaryWriter(run / "tensorboard") as board:
        written = time.monotonic()
        for number in range(begin, system.epochs):
            epoch = trainer.epoch(number)
            with (run / runs.LOG).open("a", encoding="utf-8") as file:
                file.write(epoch.model_dump_json() + "\n")
            for name, value in epoch.model_dump(exclude={"epoch"}).items():
                board.add_scalar(name, value, epoch.epoch)
            left = (system.epochs - epoch.epoch) * epoch.seconds / 60
            log.info(
                "epoch_done",
                system=system.name,
                of=system.epochs,
                minutes_left=round(left, 1),
                **epoch.model_dump(),
            )
            if time.monotonic() - written > CHECKPOINT_EVERY:
                trainer.save(run, epoch.epoch)
                written = time.monotonic()
    # Without the cut, so that whatever takes a DenseNet121 can load it.
    best = trainer.best.whole if isinstance(trainer.best, Frozen) else trainer.best
    checkpoint.write_average(run / runs.BEST, best, {"system": system.name})
    runs.write_predictions(run, trainer.predictions())
    (run / runs.CHECKPOINT).unlink(missing_ok=True)


def _is_done(run: Path, wanted: RunConfiguration) -> bool:
    if not (run / runs.CONFIGURATION).exists():
        return False
    done = (run / runs.PREDICTIONS).exists()
    # Code and machine may be others when a run goes on; what is learnt from what may not. What is done on a
    # machine of another precision is done; what is not cannot go on here.
    keys = {"system", "init", "split", "data"} | (set() if done else {"precision"})
    if runs.read_configuration(run).model_dump(include=keys) != wanted.model_dump(include=keys):
        raise ConfigurationError(
            f"The run {run} is of another system, data, beginning or precision: choose a new directory."
        )
    return done


def _begun_by(before: RunConfiguration, now: RunConfiguration) -> RunConfiguration:
    """Of a run that goes on: code and machine that began it, and those that go on, where they are others."""
    keys = ("commit", "torch", "device")
    return now.model_copy(update={key: in_turn(getattr(before, key), getattr(now, key)) for key in keys})


class Trainer:
    """A network that learns, its best epoch, and the films as it takes them."""

    def __init__(self, system: System, films: Films, device: Device, network: nn.Module) -> None:
        self.system, self.films, self.device = system, films, device
        self.network = device.place(network)
        self.best = checkpoint.average_of(self.network)
        self._best_accuracy, self._best_auroc = -1.0, -1.0
        learning = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser: torch.optim.Optimizer = (
            torch.optim.Adam(learning, system.learning_rate, fused=True)
            if system.optimiser == "adam"
            else torch.optim.SGD(learning, system.learning_rate, momentum=0.9)
        )
        weight = torch.tensor(system.positive_weight, device=device.device)
        self._loss = nn.BCEWithLogitsLoss(pos_weight=weight)
        self._labels_N = datasets.targets(films.rows)
        self._learnt, self._dev = films.places("train"), films.places("dev")
        self._takes = torch.from_numpy(films.load(system.size)).to(device.device)
        if isinstance(self.network, Frozen) and self.network.cached:
            self._takes = self._prefixed(self.network, self._takes)

    def epoch(self, number: int) -> Epoch:
        """Learn from each film once (up-sampled ones more often), then look at dev."""
        started = time.monotonic()
        for group in self.optimiser.param_groups:
            group["lr"] = self.system.rate_at(number)
        torch.manual_seed(self.system.seed + number)
        total, right, seen = 0.0, 0, 0
        self.network.train()
        for chosen in self._batches(number):
            labels_B = torch.from_numpy(self._labels_N[chosen]).to(self.device.device)
            self.optimiser.zero_grad(set_to_none=True)
            logits_B = self._logits(self.network, chosen)
            loss = self._loss(logits_B, labels_B.float())
            loss.backward()
            self.optimiser.step()
            total += loss.item() * len(chosen)
            right += int(((logits_B > 0) == labels_B).sum())
            seen += len(chosen)
        checkpoint.require_number(total, number + 1)
        dev_logits, dev_labels = self.infer(self.network, self._dev), self._labels_N[self._dev]
        accuracy = float(((dev_logits > self.system.selection_logit) == dev_labels).mean())
        area = auroc(dev_labels, dev_logits)
        # Of equally accurate epochs the first, as the report's code; AUROC does not choose.
        if accuracy > self._best_accuracy:
            self._best_accuracy = accuracy
            self.best.load_state_dict(self.network.state_dict())
        return Epoch(
            epoch=number + 1,
            loss=total / seen,
            train_accuracy=right / seen,
            dev_accuracy=accuracy,
            dev_auroc=area,
            seconds=round(time.monotonic() - started, 2),
        )

    def predictions(self) -> Predictions:
        """What the best epoch says of every film."""
        rows = self.films.rows
        return Predictions(
            files=tuple(row.file for row in rows),
            splits_N=np.array([row.split if row.seedlike else "extra" for row in rows]),
            patients_N=np.array([row.patient_group for row in rows]),
            balanced_N=np.array([row.source_balanced for row in rows]),
            labels_N=self._labels_N,
            logits_N=self.infer(self.best, np.arange(len(rows))).astype(np.float64),
        )

    def save(self, run: Path, epochs: int) -> None:
        """Write everything that the run needs to go on."""
        metadata: dict[str, object] = {"epochs": epochs, "best_accuracy": self._best_accuracy}
        checkpoint.write_checkpoint(run / runs.CHECKPOINT, self.network, self.best, self.optimiser, metadata)

    def resume(self, run: Path) -> int:
        """Go back to the last checkpoint; epochs that the log has beyond it are learnt again.

        Returns:
            How many epochs lie behind.
        """
        path, log_path = run / runs.CHECKPOINT, run / runs.LOG
        epochs = 0
        if path.exists():
            metadata, tensors = checkpoint.read_checkpoint(path)
            checkpoint.restore(tensors, self.network, self.best, self.optimiser)
            epochs, self._best_accuracy = int(str(metadata["epochs"])), float(str(metadata["best_accuracy"]))
        lines = log_path.read_text(encoding="utf-8").splitlines() if log_path.exists() else []
        write_whole(log_path, "".join(f"{line}\n" for line in lines[:epochs]))
        return epochs

    @torch.inference_mode()
    def infer(self, network: nn.Module, places: NDArray[np.intp]) -> NDArray[np.float32]:
        """Logits `(N,)` of rows."""
        network.eval()
        batch = self.system.batch
        parts = [self._logits(network, places[i : i + batch]) for i in range(0, len(places), batch)]
        logits: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
        return logits

    def _logits(self, network: nn.Module, chosen: NDArray[np.intp]) -> Tensor:
        taken = self._takes[torch.from_numpy(chosen).to(self._takes.device)]
        with self.device.autocast():
            if isinstance(network, Frozen) and network.cached:
                logits_B: Tensor = network.suffix(taken)
            else:
                logits_B = network(self.device.pixels(taken))
        return logits_B.float()

    def _batches(self, number: int) -> Iterator[NDArray[np.intp]]:
        shown = self._learnt
        if self.system.upsample:
            positive_N = self._labels_N[shown]
            repeated = np.resize(shown[positive_N], int((~positive_N).sum()))
            shown = np.concatenate([shown[~positive_N], repeated])
        order = np.random.default_rng((self.system.seed, number)).permutation(shown)
        # A last batch of one film would leave batch normalisation without a variance.
        yield from np.array_split(order, max(len(order) // self.system.batch, 1))

    @torch.inference_mode()
    def _prefixed(self, network: Frozen, films_NHW: Tensor) -> Tensor:
        """The frozen part's output for every film, in the precision in which it would be computed anew."""
        network.eval()
        parts: list[Tensor] = []
        started = time.monotonic()
        for i in range(0, len(films_NHW), self.system.batch):
            with self.device.autocast():
                parts.append(network.prefix(self.device.pixels(films_NHW[i : i + self.system.batch])))
        shape = (len(films_NHW), *parts[0].shape[1:])
        kept = torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device)
        kept = torch.cat(parts, out=kept.to(memory_format=torch.channels_last))
        log.info(
            "prefix_computed",
            system=self.system.name,
            megabytes=kept.nbytes >> 20,
            seconds=round(time.monotonic() - started, 1),
        )
        return kept.clone()  # outside of inference mode, or the suffix could not learn from it
