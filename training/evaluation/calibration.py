"""Whether a probability is one: calibration before and after the temperature, and what a result is worth.

Equal-mass bins: each holds as many films, so that no bin's share rests on three of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.evaluation import metrics
from training.evaluation.metrics import Estimate, Labels, Scores
from worker.bundle import OperatingPoint

BINS = 10
PREVALENCES = (0.01, 0.02, 0.05, 0.10, 0.20, 0.50)
_DRAWS = 500


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Bin(_Part):
    """Films of neighbouring probabilities."""

    films: int
    probability: float
    """Their mean."""
    covid: float
    """Share of them that is positive; equal to `probability` where calibration is perfect."""


class Calibration(_Part):
    """Calibration on one set of rows."""

    rows: str
    ece_before: Estimate
    """Expected calibration error of sigmoid(logit), temperature 1."""
    ece: Estimate
    """With the temperature that is served."""
    ece_by_chance: float
    """What as many perfectly calibrated films would show on average: the error is never 0."""
    bins: tuple[Bin, ...]
    """Of the served probability: the reliability diagram."""


class PredictiveValue(_Part):
    """What a result at an operating point would mean where so many have COVID-19."""

    rows: str
    """Whose sensitivity and specificity it is worked out from."""
    point: str
    prevalence: float
    ppv: Estimate | None
    """Share of positive results that are right; None where nothing is ever positive."""
    npv: Estimate | None
    """Share of negative results that are right."""


def calibrate(
    rows: str,
    labels_N: Labels,
    logits_N: NDArray[np.float32],
    patients_N: NDArray[np.str_],
    temperature: float,
) -> Calibration:
    """Measure the calibration on some rows."""
    before_N, after_N = (metrics.probabilities(logits_N, t) for t in (1.0, temperature))
    random = np.random.default_rng(0)
    perfect = [expected_error(random.random(len(after_N)) < after_N, after_N) for _ in range(_DRAWS)]
    return Calibration(
        rows=rows,
        ece_before=metrics.bootstrap(expected_error, labels_N, before_N, patients_N),
        ece=metrics.bootstrap(expected_error, labels_N, after_N, patients_N),
        ece_by_chance=float(np.mean(perfect)),
        bins=tuple(
            Bin(films=len(of), probability=float(after_N[of].mean()), covid=float(labels_N[of].mean()))
            for of in _equal_bins(after_N)
        ),
    )


def expected_error(labels_N: Labels, scores_N: Scores) -> float:
    """Expected calibration error: mean distance of share and probability over bins of as many films."""
    excess_N = (scores_N - labels_N)[np.argsort(scores_N, kind="stable")]
    edges = _edges(len(excess_N))
    return float(np.abs(np.add.reduceat(excess_N, edges[:-1])).sum() / len(excess_N))


def predictive_values(
    rows: str,
    labels_N: Labels,
    scores_N: Scores,
    patients_N: NDArray[np.str_],
    points: Sequence[OperatingPoint],
) -> tuple[PredictiveValue, ...]:
    """PPV and NPV of every operating point at every prevalence, with intervals over patients."""
    cuts_T = np.array([point.probability for point in points])

    def rates(drawn: NDArray[np.int64] | slice) -> tuple[Scores, Scores]:
        above_NT = scores_N[drawn, None] >= cuts_T
        return above_NT[labels_N[drawn]].mean(axis=0), 1 - above_NT[~labels_N[drawn]].mean(axis=0)

    resampled_R2T = np.array([rates(drawn) for drawn in metrics.draws(labels_N, patients_N)])
    value_2T = np.array(rates(slice(None)))
    found = []
    for index, point in enumerate(points):
        for prevalence in PREVALENCES:
            value = bayes(value_2T[0, index], value_2T[1, index], prevalence)
            resampled = bayes(resampled_R2T[:, 0, index], resampled_R2T[:, 1, index], prevalence)
            ppv, npv = (_estimate(*pair) for pair in zip(value, resampled, strict=True))
            found.append(
                PredictiveValue(rows=rows, point=point.name, prevalence=prevalence, ppv=ppv, npv=npv)
            )
    return tuple(found)


def bayes(
    sensitivity: Scores | float, specificity: Scores | float, prevalence: float
) -> tuple[Scores, Scores]:
    """Positive and negative predictive value; NaN where no result is positive, or negative."""
    hit, miss = np.asarray(sensitivity) * prevalence, (1 - np.asarray(sensitivity)) * prevalence
    alarm = (1 - np.asarray(specificity)) * (1 - prevalence)
    rest = np.asarray(specificity) * (1 - prevalence)
    with np.errstate(invalid="ignore"):
        return np.asarray(hit / (hit + alarm)), np.asarray(rest / (rest + miss))


def _estimate(value: Scores, resampled: Scores) -> Estimate | None:
    there = resampled[np.isfinite(resampled)]
    return metrics.estimate(float(value), there) if np.isfinite(value) and len(there) else None


def _equal_bins(scores_N: Scores) -> list[NDArray[np.int64]]:
    order, edges = np.argsort(scores_N, kind="stable"), _edges(len(scores_N))
    return [order[first:end] for first, end in pairwise(edges)]


def _edges(films: int) -> list[int]:
    return sorted({round(films * share / BINS) for share in range(BINS + 1)})
