"""What a trained network is worth: temperature and thresholds from `dev`, figures beside the floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.evaluation import metrics
from training.evaluation.calibration import Calibration, PredictiveValue, calibrate, predictive_values
from training.evaluation.floor import fit_floor
from training.evaluation.metrics import Estimate
from training.evaluation.scored import Scored
from training.evaluation.subgroups import Subgroup, ViewFigures, subgroups, within_views
from training.films import datasets
from training.films.datasets import TRAINABLE_LICENCES, Row
from worker.bundle import OperatingPoint

UNSEEN = "srcbal, every patient not learnt from"
JUDGED = "srcbal, not learnt from, without dev"
"""`UNSEEN` without the films that temperature and thresholds were chosen on."""


class Figures(BaseModel):
    """One set of rows, network and floor side by side."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    rows: str
    """Which rows, in words."""
    films: int
    positive: int
    auroc: Estimate
    floor_auroc: Estimate
    """The trivial-statistics forest on the same rows."""
    above_floor: Estimate | None = None
    """The network's less the floor's, in the same resamples; None in older evaluations."""
    sensitivity: Estimate
    """At the operating point in use."""
    specificity: Estimate
    brier: float


class Evaluation(BaseModel):
    """The outcome of `evaluate`, written as `evaluation.json` into the run directory."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    checkpoint_sha256: str
    data_sha256: str
    temperature: float
    operating_points: tuple[OperatingPoint, ...]
    """The first is in use; all are chosen on `dev`."""
    figures: tuple[Figures, ...]
    calibration: tuple[Calibration, ...] = ()
    """On `dev`, `test` and the `srcbal` films of neither training nor `dev`; empty in older evaluations."""
    predictive_values: tuple[PredictiveValue, ...] = ()
    """On the same rows but `dev`, where the points were chosen."""
    views: tuple[ViewFigures, ...] = ()
    """On `test` and every `srcbal` film not learnt from; empty in older evaluations."""
    subgroups: tuple[Subgroup, ...] = ()
    """Of the same rows; empty in older evaluations."""
    interval: Literal["95 % percentile bootstrap over patients"] = "95 % percentile bootstrap over patients"


def evaluate(
    rows: Sequence[Row],
    logits_N: NDArray[np.float32],
    statistics_N8: NDArray[np.float64],
    checkpoint_sha256: str,
) -> Evaluation:
    """Calibrate and choose thresholds on `dev`, then measure every set of rows.

    Args:
        rows: the catalogue.
        logits_N: the network's logit for each row that `measured` names; others are not looked at.
        statistics_N8: the floor's input for each row.
        checkpoint_sha256: digest of the weights that made the logits.
    """
    labels_N = datasets.targets(rows)
    learnt_N = np.array([row.trainable for row in rows])
    dev_N = np.array([row.split == "dev" for row in rows])
    temperature = metrics.fit_temperature(labels_N[dev_N], logits_N[dev_N].astype(np.float64))
    scores_N = metrics.probabilities(logits_N, temperature)
    points = metrics.operating_points(labels_N[dev_N], scores_N[dev_N], "dev")
    floor_N = fit_floor(statistics_N8[learnt_N], labels_N[learnt_N]).predict_proba(statistics_N8)[:, 1]
    patients_N = np.array([row.patient_group for row in rows])
    sets = {name: set_N for name, set_N in _sets(rows).items() if 0 < labels_N[set_N].sum() < set_N.sum()}
    scored = Scored(labels_N=labels_N, scores_N=scores_N, floor_N=floor_N, patients_N=patients_N)
    figures = [_measure(name, scored.at(set_N), points[0].probability) for name, set_N in sets.items()]
    judged = {name: sets[name] for name in ("test", JUDGED) if name in sets}
    calibrated = {name: sets[name] for name in ("dev",) if name in sets} | judged
    return Evaluation(
        checkpoint_sha256=checkpoint_sha256,
        data_sha256=datasets.digest(rows),
        temperature=temperature,
        operating_points=points,
        figures=tuple(figures),
        calibration=tuple(
            calibrate(name, labels_N[set_N], logits_N[set_N], patients_N[set_N], temperature)
            for name, set_N in calibrated.items()
        ),
        predictive_values=tuple(
            value
            for name, set_N in judged.items()
            for value in predictive_values(name, labels_N[set_N], scores_N[set_N], patients_N[set_N], points)
        ),
        views=tuple(
            found
            for name in ("test", UNSEEN)
            if name in sets and (found := within_views(name, rows, sets[name], scored))
        ),
        subgroups=tuple(
            found
            for name in ("test", UNSEEN)
            if name in sets
            for found in subgroups(name, rows, sets[name], scored)
        ),
    )


def measured(rows: Sequence[Row]) -> NDArray[np.bool_]:
    """Which rows stand in any measured set, `(N,)`."""
    measured_N: NDArray[np.bool_] = np.logical_or.reduce(list(_sets(rows).values()))
    return measured_N


def _sets(rows: Sequence[Row]) -> dict[str, NDArray[np.bool_]]:
    learnt = {row.patient_group for row in rows if row.trainable}
    free = np.array([row.licence_class in TRAINABLE_LICENCES for row in rows])
    unseen = np.array([row.patient_group not in learnt for row in rows])
    balanced = np.array([row.source_balanced for row in rows])
    split = {name: np.array([row.split == name for row in rows]) for name in datasets.SPLITS}
    return {
        "dev": split["dev"],
        "dev, redistributable films": split["dev"] & free,
        "test": split["test"],
        "test, redistributable films": split["test"] & free,
        "srcbal, dev and test": (split["dev"] | split["test"]) & balanced,
        UNSEEN: balanced & unseen,
        JUDGED: balanced & unseen & ~split["dev"],
    }


def _measure(name: str, scored: Scored, threshold: float) -> Figures:
    columns = (scored.labels_N, scored.scores_N, scored.floor_N, scored.patients_N)
    return Figures(
        rows=name,
        films=len(scored.labels_N),
        positive=scored.positive,
        auroc=scored.auroc,
        floor_auroc=scored.floor_auroc,
        above_floor=metrics.bootstrap_excess(metrics.auroc, *columns),
        sensitivity=scored.estimate(metrics.sensitivity_at(threshold), scored.scores_N),
        specificity=scored.estimate(metrics.specificity_at(threshold), scored.scores_N),
        brier=metrics.brier(scored.labels_N, scored.scores_N),
    )
