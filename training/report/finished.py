"""The runs of the report's systems that are done, all of the same films."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from dicom_node.errors import ConfigurationError
from training.sweep import runs
from training.sweep.runs import Epoch, Predictions, RunConfiguration
from training.sweep.systems import System, report_systems


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that is done."""

    run: Path
    configuration: RunConfiguration
    log: tuple[Epoch, ...]
    predictions: Predictions

    @property
    def system(self) -> System:
        """What was trained."""
        return self.configuration.system

    @property
    def label(self) -> str:
        """Short name for a figure."""
        return label_of(self.system)

    @property
    def has_weights(self) -> bool:
        """Whether other films can be shown than those that its pictures show."""
        return (self.run / runs.BEST).exists()

    @property
    def has_looks(self) -> bool:
        """Whether there are pictures of what it looks at, on phantoms."""
        return (self.run / runs.LOOKS).exists()

    @property
    def best(self) -> Epoch:
        """The epoch that was kept: the first of the most accurate on dev."""
        return max(self.log, key=lambda epoch: epoch.dev_accuracy)

    @property
    def minutes(self) -> float:
        """Of all epochs, each with its look at dev, had all taken as long as the median one.

        Some were learnt beside other work, or stopped for it: their own times say nothing of a system.
        """
        return len(self.log) * self.epoch_seconds[1] / 60

    @property
    def epoch_seconds(self) -> tuple[float, float, float]:
        """The fastest epoch, the median one, and the slowest."""
        seconds = [epoch.seconds for epoch in self.log]
        return min(seconds), median(seconds), max(seconds)


def label_of(system: System) -> str:
    """Short name of a system: `CNN 1`, `ResNet-18`, `DenseNet 10`, with the report's model number."""
    _, model, number = system.title.partition("Model ")
    if not model:
        return "ResNet-18"
    return f"{'CNN' if system.network == 'baseline-cnn' else 'DenseNet'} {number.split()[0]}"


def finished_runs(folder: Path) -> tuple[tuple[Finished, ...], tuple[System, ...]]:
    """Read the run directories in a folder, which are named as their systems.

    Returns:
        Those that are done, in the report's order, and the systems of which none is.

    Raises:
        ConfigurationError: none is done, a file is unusable, or two runs are of different films.
    """
    done: list[Finished] = []
    missing: list[System] = []
    for system in report_systems():
        run = folder / system.name
        if not (run / runs.PREDICTIONS).exists():
            missing.append(system)
            continue
        done.append(_read(run, system.name))
    if not done:
        raise ConfigurationError(f"No run of the report's systems is done in {folder}.")
    require_same_films(done)
    return tuple(done), tuple(missing)


def require_same_films(done: Sequence[Finished]) -> None:
    """Refuse to set figures side by side that are of different films.

    Raises:
        ConfigurationError: names two runs that differ.
    """
    first = done[0]
    for other in done[1:]:
        one, two = first.predictions, other.predictions
        same = (
            first.configuration.data == other.configuration.data
            and one.files == two.files
            and all(
                np.array_equal(getattr(one, column), getattr(two, column))
                for column in ("splits_N", "patients_N", "balanced_N", "labels_N")
            )
        )
        if not same:
            raise ConfigurationError(
                f"The runs {first.run} and {other.run} are not of the same films in the same order."
            )


def _read(run: Path, name: str) -> Finished:
    configuration, log = runs.read_configuration(run), runs.read_log(run)
    if configuration.system.name != name:
        raise ConfigurationError(f"The run {run} is of the system `{configuration.system.name}`.")
    if not log:
        raise ConfigurationError(f"{run / runs.LOG} is missing or unusable.")
    return Finished(run=run, configuration=configuration, log=log, predictions=runs.read_predictions(run))
