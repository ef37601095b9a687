"""The floor sees what is on the surface of a film, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation import floor, metrics
from training.films import datasets

pytestmark = pytest.mark.training


def test_the_statistics_of_a_known_film():
    """A film with a black left half has the statistics that can be counted."""
    film_HW = np.full((100, 200), 200, np.uint8)
    film_HW[:, :100] = 0
    values = dict(zip(floor.STATISTICS, floor.statistics_of(film_HW), strict=True))
    assert values["aspect"] == 2
    assert values["mean"] == 100
    assert values["share of black"] == 0.5
    assert values["share of white"] == 0
    assert values["mean of the left and right border"] == 100


def test_the_floor_finds_a_confounder(films):
    """Where one class has wider films, the floor tells the classes apart on films it never saw."""
    rows = datasets.read_rows(films)
    labels_N = datasets.targets(rows)
    learnt_N = np.array([row.trainable for row in rows])
    statistics_N8 = floor.statistics(films, rows)
    forest = floor.fit_floor(statistics_N8[learnt_N], labels_N[learnt_N])
    scores_N = forest.predict_proba(statistics_N8)[:, 1]
    assert metrics.auroc(labels_N[~learnt_N], scores_N[~learnt_N]) > 0.95
