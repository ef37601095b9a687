"""Figures of merit on cases small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation import metrics

pytestmark = pytest.mark.training

LABELS = np.array([False, False, False, False, True, True, True, True])
SCORES = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.7, 0.8, 0.9])


def test_auroc_is_the_share_of_ordered_pairs():
    """Fifteen of the sixteen pairs are in order."""
    assert metrics.auroc(LABELS, SCORES) == pytest.approx(15 / 16)


def test_within_strata_only_pairs_of_one_stratum_count():
    """A score that tells the strata apart and nothing else is worth a half within them."""
    strata = np.array(["pa", "pa", "pa", "ap", "pa", "ap", "ap", "ap"])
    of_stratum = (strata == "ap").astype(float)
    assert metrics.auroc(LABELS, of_stratum) == pytest.approx(0.75)
    assert metrics.auroc_within(LABELS, of_stratum, strata) == pytest.approx(0.5)
    # Three pairs among the PA films, three among the AP films, all in order.
    assert metrics.auroc_within(LABELS, SCORES, strata) == pytest.approx(1)
    assert np.isnan(metrics.auroc_within(LABELS, SCORES, LABELS.astype(str)))
    found = metrics.bootstrap_within(LABELS, SCORES, strata, np.array([f"p{i}" for i in range(8)]))
    assert found.value == found.high == pytest.approx(1)


def test_operating_points_keep_what_they_promise():
    """Each threshold gives the sensitivity and specificity that stand beside it, and lies between scores."""
    points = metrics.operating_points(LABELS, SCORES, "dev")
    assert [point.name for point in points] == ["youden@dev", "sensitivity-95@dev", "specificity-95@dev"]
    for point in points:
        assert metrics.sensitivity_at(point.probability)(LABELS, SCORES) == point.sensitivity
        assert metrics.specificity_at(point.probability)(LABELS, SCORES) == point.specificity
        assert np.abs(SCORES - point.probability).min() > 0.01
    assert points[1].sensitivity == 1
    assert points[2].specificity == 1


def test_the_interval_draws_patients_not_films():
    """Ten copies of every film of the same patients do not make the interval narrower."""
    patients = np.array([f"p{i}" for i in range(8)])
    once = metrics.bootstrap(metrics.auroc, LABELS, SCORES, patients)
    copied = metrics.bootstrap(metrics.auroc, np.tile(LABELS, 10), np.tile(SCORES, 10), np.tile(patients, 10))
    assert once.low < once.value <= once.high
    assert copied.low == pytest.approx(once.low, abs=1e-9)


def test_temperature_undoes_a_scaling_of_the_logits():
    """Logits multiplied by three want three times the temperature."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 4000)
    labels = random.random(4000) < 1 / (1 + np.exp(-logits))
    assert metrics.fit_temperature(labels, logits) == pytest.approx(1, abs=0.1)
    assert metrics.fit_temperature(labels, logits * 3) == pytest.approx(
        3 * metrics.fit_temperature(labels, logits), rel=0.01
    )
