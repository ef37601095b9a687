"""Figures of merit of all systems at once, on films few enough to count by hand."""

from __future__ import annotations

import csv
from itertools import product

import numpy as np
import pytest
from sklearn.metrics import classification_report

from training.evaluation import metrics
from training.report.classification import (
    ABOVE_FLOOR,
    FLOOR,
    Confusion,
    Measurement,
    confusion,
    measure,
    places,
    write_metrics,
)
from training.report.published import published
from training.sweep.runs import Predictions

pytestmark = pytest.mark.training

# On test: 2 of 3 COVID films are found, 1 of 5 others is called COVID.
LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
LOGITS = np.array([2.0, 1.0, -1.0, 1.0, -1.0, -2.0, -3.0, -4.0])


def predictions(splits, *, patients=None, balanced=None) -> Predictions:
    return Predictions(
        files=tuple(f"{i}.png" for i in range(len(LABELS))),
        splits_N=np.array(splits),
        patients_N=np.array(patients or [f"p{i}" for i in range(len(LABELS))]),
        balanced_N=np.array(balanced or [False] * len(LABELS)),
        labels_N=LABELS,
        logits_N=LOGITS,
    )


def test_figures_are_those_counted_by_hand():
    """Precision 2/3, recall 2/3, specificity 4/5, accuracy 6/8, AUROC 12.5 of 15 pairs."""
    found = measure(predictions(["test"] * 8), {"s": LOGITS})
    values = {(m.label, m.metric): m.value for m in found}
    # Pairs in order: 5, then 4 and a tie, then 3 and a tie.
    expected = {
        ("covid", "precision"): 2 / 3,
        ("covid", "recall"): 2 / 3,
        ("covid", "f1"): 2 / 3,
        ("covid", "support"): 3,
        ("noncovid", "precision"): 4 / 5,
        ("noncovid", "recall"): 4 / 5,
        ("noncovid", "f1"): 4 / 5,
        ("noncovid", "support"): 5,
        ("covid", "patients"): 3,
        ("noncovid", "patients"): 5,
        ("weighted", "precision"): (3 * 2 / 3 + 5 * 4 / 5) / 8,
        ("weighted", "recall"): 6 / 8,
        ("weighted", "f1"): 6 / 8,
        ("weighted", "support"): 8,
        ("all", "accuracy"): 6 / 8,
        ("all", "auroc"): (5 + 4.5 + 3.5) / 15,
    }
    assert values == pytest.approx(expected)
    assert confusion(predictions(["test"] * 8), "test") == Confusion(
        true_positive=2, false_negative=1, false_positive=1, true_negative=4
    )


def test_figures_are_those_of_scikit_learn():
    """The classification report of scikit-learn, which the report used, has the same figures."""
    random = np.random.default_rng(3)
    labels, logits = random.random(200) < 0.3, random.normal(size=200)
    films = Predictions(
        files=tuple(map(str, range(200))),
        splits_N=np.full(200, "test"),
        patients_N=np.arange(200).astype(str),
        balanced_N=np.zeros(200, bool),
        labels_N=labels,
        logits_N=logits,
    )
    values = {(m.label, m.metric): m.value for m in measure(films, {"s": logits})}
    theirs = classification_report(labels, logits > 0, output_dict=True)
    names = {"covid": "True", "noncovid": "False", "weighted": "weighted avg"}
    for (label, name), metric in product(names.items(), ("precision", "recall", "f1-score", "support")):
        assert values[label, metric.removesuffix("-score")] == pytest.approx(theirs[name][metric])


def test_intervals_are_those_of_one_resample_after_the_other():
    """The interval of AUROC, ties included, is the one that the slow bootstrap gives."""
    patients = ["a", "a", "b", "c", "c", "d", "e", "f"]
    found = measure(predictions(["test"] * 8, patients=patients), {"s": LOGITS})
    ours = next(m for m in found if m.metric == "auroc")
    slow = metrics.bootstrap(metrics.auroc, LABELS, LOGITS, np.array(patients))
    assert (ours.value, ours.low, ours.high) == pytest.approx((slow.value, slow.low, slow.high))


def test_nothing_called_covid_is_a_precision_of_zero():
    """A system that calls nothing COVID has precision, recall and F1 of 0, and no warning."""
    found = measure(predictions(["test"] * 8), {"s": LOGITS - 10})
    values = {(m.label, m.metric): m.value for m in found}
    assert [values["covid", metric] for metric in ("precision", "recall", "f1")] == [0, 0, 0]


def test_balanced_films_share_no_patient_with_those_learnt_from():
    """A balanced film of train, or of a patient in train, is left out; a set of one class is not measured."""
    films = predictions(
        ["train", "train", "test", "train", "dev", "extra", "test", "dev"],
        patients=["a", "b", "c", "d", "a", "e", "f", "g"],
        balanced=[True, True, True, True, True, True, False, True],
    )
    assert places(films, "srcbal").tolist() == [2, 5, 7]
    assert {m.split for m in measure(films, {"s": LOGITS})} == {"train", "test", "srcbal"}


def test_the_table_is_written_whole(tmp_path):
    """A support has no interval, and its cells are empty."""
    rows = (
        Measurement(system="s", split="test", label="all", metric="auroc", value=0.5, low=0.25, high=0.75),
        Measurement(system="s", split="test", label="covid", metric="support", value=65.0),
    )
    write_metrics(tmp_path / "metrics.csv", rows)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0].values()) == ["s", "test", "all", "auroc", "0.5", "0.25", "0.75"]
    assert list(read[1].values()) == ["s", "test", "covid", "support", "65", "", ""]
    assert not list(tmp_path.glob("*.part"))


def test_doubts_are_the_published_figures_that_no_counts_give():
    """Of accuracy, recall and F1 in Table 2, those marked are the ones that do not follow from counts."""
    found = set()
    films = published().films
    for system, column in published().table2.items():
        for split, (covid, other) in films.items():
            if not _is_share(column.accuracy[split], covid + other):
                found.add((system, "accuracy", split))
            if not _is_share(column.recall[split], covid):
                found.add((system, "recall", split))
            precision, recall = column.precision[split], column.recall[split]
            if abs(2 * precision * recall / (precision + recall) - column.f1[split]) > 0.1:
                found.add((system, "f1", split))
    assert found == {(d.system, d.metric, d.split) for d in published().doubts}


def _is_share(percent: float, films: int) -> bool:
    return any(round(100 * count / films, 1) == percent for count in range(films + 1))


def test_a_network_is_measured_against_the_floor_in_the_same_resamples():
    """One that agrees with the floor is above it by 0 in every resample, whatever its own interval."""
    films = predictions(["test"] * 8)
    found = {(m.system, *key(m)): m for m in measure(films, {"net": LOGITS, "worse": -LOGITS, FLOOR: LOGITS})}
    same, worse = (found[name, "test", *ABOVE_FLOOR] for name in ("net", "worse"))
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert worse.value == pytest.approx(1 - 2 * 13 / 15)
    assert worse.low < worse.value < worse.high
    assert (FLOOR, "test", *ABOVE_FLOOR) not in found


def key(m: Measurement) -> tuple[str, str, str]:
    return m.split, m.label, m.metric
