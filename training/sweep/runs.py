"""The run directory of a system of the report: what each file is called and what stands in it.

configuration.json     RunConfiguration: the system, its data, its code, its machine
log.jsonl              one Epoch a line
checkpoint.safetensors weights and optimiser, to go on from; removed when the run is done
best.safetensors       weights of the epoch with the best accuracy on dev
predictions.csv        a logit for every film that is measured; written last, so it says "done"
looks/                 pictures of what the network looks at, on phantoms (report/looks.py)
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from dicom_node.errors import ConfigurationError
from training.files import write_whole
from training.sweep.systems import System

CONFIGURATION, LOG, PREDICTIONS = "configuration.json", "log.jsonl", "predictions.csv"
CHECKPOINT, BEST, LOOKS = "checkpoint.safetensors", "best.safetensors", "looks"


class RunConfiguration(BaseModel):
    """`configuration.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    system: System
    init: str
    """Weights begun with: `random`, or what the importer says of the file."""
    split: str
    """How patients were split: `patient` or `image`."""
    data: str
    """Digest of the rows used, see `datasets.digest`."""
    commit: str
    torch: str
    device: str
    """Processor or GPU, in its own words."""
    precision: str
    """`bfloat16` or `float32`: of the activations; weights and sums are float32."""


class Epoch(BaseModel):
    """A line of `log.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epoch: int
    """Counted from 1."""
    loss: float
    """Mean over the epoch's films, weighted as the system weights them."""
    train_accuracy: float
    """Of the views as they were learnt from, before each step."""
    dev_accuracy: float
    dev_auroc: float
    seconds: float


class _Prediction(BaseModel):
    """A row of `predictions.csv`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(min_length=1)
    split: Literal["train", "dev", "test", "extra"]
    patient_group: str = Field(min_length=1)
    srcbal: Literal["0", "1"]
    covid: Literal["0", "1"]
    logit: FiniteFloat


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the best epoch says of every measured film; arrays of one length."""

    files: tuple[str, ...]
    splits_N: NDArray[np.str_]
    """`train`, `dev` (the report's validation) or `test`; `extra` for a film outside the report's subset
    that no film learnt from shares a patient with."""
    patients_N: NDArray[np.str_]
    balanced_N: NDArray[np.bool_]
    labels_N: NDArray[np.bool_]
    """True for COVID-19."""
    logits_N: NDArray[np.float64]
    """Positive means COVID-19; p = sigmoid(logit)."""


def write_predictions(run: Path, predictions: Predictions) -> None:
    """Write `predictions.csv` atomically."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(_Prediction.model_fields)
    writer.writerows(
        (name, split, patient, int(balanced), int(label), f"{logit:.6f}")
        for name, split, patient, balanced, label, logit in zip(
            predictions.files,
            predictions.splits_N,
            predictions.patients_N,
            predictions.balanced_N,
            predictions.labels_N,
            predictions.logits_N,
            strict=True,
        )
    )
    write_whole(run / PREDICTIONS, table.getvalue())


def read_predictions(run: Path) -> Predictions:
    """Read `predictions.csv`.

    Raises:
        ConfigurationError: the run is not done, or a row is unusable; file and line are named.
    """
    path, rows = run / PREDICTIONS, []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restkey="a column too many")
            for row in reader:
                rows.append(_Prediction.model_validate(row))
    except OSError:
        raise ConfigurationError(f"The run {run} is not done: {PREDICTIONS} cannot be read.") from None
    except ValidationError as error:
        first = error.errors()[0]["loc"][0]
        raise ConfigurationError(f"{path}, line {reader.line_num}: `{first}` is unusable.") from None
    except (UnicodeDecodeError, csv.Error):
        raise ConfigurationError(f"{path} is not a table of predictions.") from None
    if not rows:
        raise ConfigurationError(f"{path} holds no film.")
    return Predictions(
        files=tuple(row.file for row in rows),
        splits_N=np.array([row.split for row in rows]),
        patients_N=np.array([row.patient_group for row in rows]),
        balanced_N=np.array([row.srcbal == "1" for row in rows]),
        labels_N=np.array([row.covid == "1" for row in rows]),
        logits_N=np.array([row.logit for row in rows], np.float64),
    )


def read_configuration(run: Path) -> RunConfiguration:
    """Read `configuration.json`.

    Raises:
        ConfigurationError: it is missing or of another version.
    """
    try:
        return RunConfiguration.model_validate_json((run / CONFIGURATION).read_bytes())
    except (OSError, ValidationError):
        raise ConfigurationError(f"{run / CONFIGURATION} is missing or unusable.") from None


def read_log(run: Path) -> tuple[Epoch, ...]:
    """Read `log.jsonl`; an unfinished last line is left out.

    Raises:
        ConfigurationError: there is no log.
    """
    try:
        lines = (run / LOG).read_text(encoding="utf-8").split("\n")[:-1]
        return tuple(Epoch.model_validate_json(line) for line in lines)
    except (OSError, ValidationError):
        raise ConfigurationError(f"{run / LOG} is missing or unusable.") from None
