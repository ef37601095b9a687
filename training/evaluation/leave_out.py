"""What a way of training is worth on a source never seen, and where it looks: what candidates are chosen by.

Each fold leaves the films of some origins out of training and asks which of them are COVID. The films
that are not come from web publications, of which (almost) none may be learnt from in any fold, so that
neither class of a fold looks like a source that was learnt. Leaving out the one hospital that the other
class comes from would leave nothing to learn, so there is no such fold.

A fold that begins with weights of a pretraining has seen there what that was taught: leave the same films out
of it, or say so beside the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dicom_node.errors import ConfigurationError
from training.device import best_device
from training.evaluation import metrics
from training.evaluation.floor import fit_floor
from training.evaluation.metrics import Estimate
from training.explain.localise import Location, locate
from training.explain.lungs import lung_fields
from training.explain.maps import activation_maps
from training.files import write_whole
from training.films.datasets import Row, digest, targets
from training.networks.densenet import DenseNet121
from training.settings import TrainingSettings
from training.train import infer, load_network, train

WEB = ("ieee8023", "figure1")
FOLDS: dict[str, tuple[str, ...]] = {"web": WEB, "hannover": ("hannover",), "cxnet": ("cxnet",)}
RESULT = "leave_out.json"


class Fold(BaseModel):
    """One source left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    left_out: tuple[str, ...]
    films: int
    positive: int
    auroc: Estimate
    floor_auroc: Estimate
    """The trivial-statistics forest, fitted to what the network learnt from."""
    maps: Location | None = None
    """Where the maps of the COVID films point; None in older results."""


class LeaveOut(BaseModel):
    """`leave_out.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    settings: TrainingSettings
    data: str = ""
    """Digest of the catalogue; empty in older results."""
    folds: dict[str, Fold]

    @property
    def mean(self) -> float:
        """Mean AUROC of the folds, by which candidates are chosen."""
        return float(np.mean([fold.auroc.value for fold in self.folds.values()]))


def leave_one_source_out(
    settings: TrainingSettings,
    rows: Sequence[Row],
    inputs_NHW: NDArray[np.uint8],
    statistics_N8: NDArray[np.float64],
    run: Path,
    *,
    only: Sequence[str] = (),
) -> LeaveOut:
    """Train once for each fold, below `run`, and measure each on what it has not seen.

    What is trained already, or put there by `soup`, is measured only; folds that were measured before with
    the same settings and films stay in the result.

    Args:
        settings: of the candidate; `leave_out` is set for each fold.
        rows: the whole catalogue.
        inputs_NHW: recipe outputs in the order of `rows`.
        statistics_N8: the floor's input in the order of `rows`.
        run: directory; each fold's run directory stands in it.
        only: names of folds; without one all.

    Raises:
        ConfigurationError: a fold is unknown or has no films of a class, an earlier result is damaged; or see
            `train`.
    """
    labels_N, patients_N = targets(rows), np.array([row.patient_group for row in rows])
    data = digest(rows)
    folds = _measured(settings, data, run / RESULT)
    for name in only or FOLDS:
        if name not in FOLDS:
            raise ConfigurationError(f"`{name}` is no fold: choose of {', '.join(FOLDS)}.")
        origins = FOLDS[name]
        learnt_N, asked_N = _learnt(rows, origins), _asked(rows, origins)
        for what, set_N in (("learns from", learnt_N), ("asks", asked_N)):
            if len(set(labels_N[set_N])) != 2:
                raise ConfigurationError(f"The fold `{name}` {what} no film of one class.")
        train(settings.model_copy(update={"leave_out": origins}), rows, inputs_NHW, run / name)
        network = load_network(run / name)
        scores_N = infer(network, inputs_NHW[asked_N])
        forest = fit_floor(statistics_N8[learnt_N], labels_N[learnt_N])
        floor_N = forest.predict_proba(statistics_N8[asked_N])[:, 1]
        asked_labels, asked_patients = labels_N[asked_N], patients_N[asked_N]
        folds[name] = Fold(
            left_out=origins,
            films=len(asked_labels),
            positive=int(asked_labels.sum()),
            auroc=metrics.bootstrap(metrics.auroc, asked_labels, scores_N, asked_patients),
            floor_auroc=metrics.bootstrap(metrics.auroc, asked_labels, floor_N, asked_patients),
            maps=_maps(network, inputs_NHW[asked_N & labels_N], patients_N[asked_N & labels_N]),
        )
    result = LeaveOut(settings=settings, data=data, folds=folds)
    write_whole(run / RESULT, result.model_dump_json(indent=2) + "\n")
    return result


def _measured(settings: TrainingSettings, data: str, path: Path) -> dict[str, Fold]:
    """What is known of these settings on these films already."""
    try:
        before = LeaveOut.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise ConfigurationError(
            f"{path} is not usable: remove it, and its folds are measured anew."
        ) from None
    return dict(before.folds) if (before.settings, before.data) == (settings, data) else {}


def _maps(network: DenseNet121, inputs_NHW: NDArray[np.uint8], patients_N: NDArray[np.str_]) -> Location:
    device = best_device()
    maps_NHW = activation_maps(network.to(device.device), inputs_NHW, device)
    return locate(maps_NHW, [lung_fields(input_HW) for input_HW in inputs_NHW], patients_N)


def _learnt(rows: Sequence[Row], left_out: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([row.trainable and row.origin not in left_out for row in rows])


def _asked(rows: Sequence[Row], left_out: Sequence[str]) -> NDArray[np.bool_]:
    """COVID films of the origins left out and other films of the web, of patients not learnt from.

    None of `test`: what chooses a candidate must not be what it is judged by.
    """
    learnt = {row.patient_group for row in rows if row.trainable and row.origin not in left_out}
    return np.array(
        [
            row.split != "test"
            and row.origin in (left_out if row.positive else WEB)
            and row.patient_group not in learnt
            for row in rows
        ]
    )
