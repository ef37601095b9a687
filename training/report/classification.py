"""The classification report of every system on every set of rows, each figure with its interval.

Precision, recall and F1 are those of scikit-learn's classification report, 0 where nothing was predicted.
Intervals come from 1000 resamples of patients, the same ones for every system, all at once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.evaluation import metrics
from training.files import write_whole
from training.sweep.runs import Predictions

SETS = ("train", "dev", "test", "srcbal")
CLASSES = ("covid", "noncovid", "weighted")
PER_CLASS = ("precision", "recall", "f1", "support")
COLUMNS = ("system", "split", "class", "metric", "value", "low", "high")
FLOOR, FLOOR_APART = "floor", "floor-apart"
"""The forest on trivial statistics, as a system."""
ABOVE_FLOOR = ("all", "auroc_above_floor")
"""Class and metric: AUROC less the floor's."""
Counts = NDArray[np.intp]
Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A row of `metrics.csv`."""

    system: str
    split: str
    label: str
    """`covid`, `noncovid`, `weighted`, or `all` for accuracy and AUROC."""
    metric: str
    value: float
    low: float | None = None
    """Of the 95 % interval; None for a support, which is counted and not estimated."""
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Films of a set by class and call, COVID-19 being positive."""

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int


def places(predictions: Predictions, name: str) -> NDArray[np.intp]:
    """Indices of the films of a set.

    `srcbal` holds films of publishers that contribute both classes, of patients that nothing was learnt of.
    """
    if name != "srcbal":
        return np.flatnonzero(predictions.splits_N == name)
    learnt = predictions.patients_N[predictions.splits_N == "train"]
    return np.flatnonzero(predictions.balanced_N & ~np.isin(predictions.patients_N, learnt))


def measure(predictions: Predictions, logits: dict[str, NDArray[np.float64]]) -> tuple[Measurement, ...]:
    """Measure systems.

    Args:
        predictions: the films.
        logits: by system, `(N,)` each.

    Returns:
        In the order of the systems and of `SETS`; a set of one class only is left out.
    """
    found: dict[str, list[Measurement]] = {system: [] for system in logits}
    for split in SETS:
        chosen = places(predictions, split)
        labels = predictions.labels_N[chosen]
        if len(np.unique(labels)) < 2:
            continue
        counts = metrics.resamples(labels, predictions.patients_N[chosen])
        counts = np.concatenate([np.ones((1, len(labels)), counts.dtype), counts])
        patients = {
            label: len(np.unique(predictions.patients_N[chosen][labels == (label == "covid")]))
            for label in ("covid", "noncovid")
        }
        measured = {system: _values(labels, logits_N[chosen], counts) for system, logits_N in logits.items()}
        for system, values in measured.items():
            if FLOOR in measured and system not in {FLOOR, FLOOR_APART}:
                # In the same resamples: both are high or low together, and their difference is sharper.
                values[ABOVE_FLOOR] = values["all", "auroc"] - measured[FLOOR]["all", "auroc"]
            found[system] += [_measurement(system, split, *key, value) for key, value in values.items()]
            found[system] += [
                Measurement(system=system, split=split, label=label, metric="patients", value=float(count))
                for label, count in patients.items()
            ]
    return tuple(row for rows in found.values() for row in rows)


def confusion(predictions: Predictions, split: str) -> Confusion:
    """Count a set's films; a logit above 0 calls COVID-19."""
    chosen = places(predictions, split)
    labels, called = predictions.labels_N[chosen], predictions.logits_N[chosen] > 0
    return Confusion(
        true_positive=int((labels & called).sum()),
        false_negative=int((labels & ~called).sum()),
        false_positive=int((~labels & called).sum()),
        true_negative=int((~labels & ~called).sum()),
    )


def write_metrics(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write `metrics.csv` atomically."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for m in measurements:
        numbers = ("" if number is None else f"{number:.6g}" for number in (m.value, m.low, m.high))
        writer.writerow((m.system, m.split, m.label, m.metric, *numbers))
    write_whole(path, table.getvalue())


def _measurement(system: str, split: str, label: str, metric: str, values_R: Values) -> Measurement:
    """The first value is that of the films themselves, the others of their resamples."""
    if metric == "support":
        return Measurement(system=system, split=split, label=label, metric=metric, value=float(values_R[0]))
    low, high = np.percentile(values_R[1:], (2.5, 97.5))
    return Measurement(
        system=system,
        split=split,
        label=label,
        metric=metric,
        value=float(values_R[0]),
        low=float(low),
        high=float(high),
    )


def _values(labels: NDArray[np.bool_], logits: Values, counts: Counts) -> dict[tuple[str, str], Values]:
    """Every figure in every resample, `(R,)` by class and metric; `counts` is `(R, N)`."""
    called = logits > 0
    hits = {"covid": counts @ (labels & called), "noncovid": counts @ (~labels & ~called)}
    support = {"covid": counts @ labels, "noncovid": counts @ ~labels}
    calls = {"covid": counts @ called, "noncovid": counts @ ~called}
    films = counts.sum(axis=1)
    values: dict[tuple[str, str], Values] = {}
    for label in ("covid", "noncovid"):
        values[label, "precision"] = _ratio(hits[label], calls[label])
        values[label, "recall"] = _ratio(hits[label], support[label])
        values[label, "f1"] = _ratio(2 * hits[label], calls[label] + support[label])
        values[label, "support"] = support[label].astype(np.float64)
    for metric in ("precision", "recall", "f1"):
        total = sum(values[label, metric] * support[label] for label in support)
        values["weighted", metric] = np.asarray(total / films)
    values["weighted", "support"] = films.astype(np.float64)
    values["all", "accuracy"] = (hits["covid"] + hits["noncovid"]) / films
    values["all", "auroc"] = _auroc(labels, logits, counts)
    return values


def _ratio(part: Counts, whole: Counts) -> Values:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _auroc(labels: NDArray[np.bool_], logits: Values, counts: Counts) -> Values:
    """As `metrics.auroc` of each resample: pairs in order, ties by half."""
    _, rank_N = np.unique(logits, return_inverse=True)
    starts = np.flatnonzero(np.diff(np.sort(rank_N), prepend=-1))
    order = np.argsort(rank_N, kind="stable")
    positive = np.add.reduceat((counts * labels)[:, order], starts, axis=1)
    negative = np.add.reduceat((counts * ~labels)[:, order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    return np.asarray((positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1)))
