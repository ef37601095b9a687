"""Calibration and predictive values against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.bundle.reliability import draw_reliability
from training.evaluation import calibration, metrics
from worker.bundle import OperatingPoint

pytestmark = pytest.mark.training


def calibrated(films=20_000):
    """Logits, and labels that are as likely as they say."""
    random = np.random.default_rng(0)
    logits_N = random.normal(0, 1.5, films).astype(np.float32)
    return random.random(films) < metrics.probabilities(logits_N, 1.0), logits_N


def test_a_perfectly_calibrated_sample_has_no_error():
    """The error of many films whose probabilities are true is nearly 0, and of overconfident ones is not."""
    labels_N, logits_N = calibrated()
    assert calibration.expected_error(labels_N, metrics.probabilities(logits_N, 1.0)) < 0.02
    assert calibration.expected_error(labels_N, metrics.probabilities(logits_N, 1 / 3)) > 0.1


def test_the_error_by_hand():
    """Ten films at 0.2 of which five are positive are off by 0.3, and ten right ones halve that."""
    scores_N = np.repeat([0.2, 1.0], 10)
    labels_N = np.array(([True] * 5 + [False] * 5) + [True] * 10)
    # Two films a bin: of the five at 0.2, two are all positive, one is mixed and two are all negative.
    expected = (0.8 + 0.8 + 0.3 + 0.2 + 0.2 + 5 * 0) / 10
    assert calibration.expected_error(labels_N, scores_N) == pytest.approx(expected)


def test_the_temperature_mends_what_it_can():
    """Logits three times too large have a large error before the temperature and a small one after."""
    labels_N, logits_N = calibrated(800)
    temperature = metrics.fit_temperature(labels_N, 3 * logits_N.astype(np.float64))
    found = calibration.calibrate("rows", labels_N, 3 * logits_N, np.arange(800).astype(str), temperature)
    assert found.ece.high < found.ece_before.low
    assert 0 < found.ece_by_chance < 0.06
    assert {part.films for part in found.bins} == {80}
    assert [part.probability for part in found.bins] == sorted(part.probability for part in found.bins)


def test_predictive_values_by_bayes():
    """Sensitivity 0.8 and specificity 0.9 at 10 %: 0.08 true of 0.17 positives, 0.81 of 0.83 negatives."""
    ppv, npv = calibration.bayes(0.8, 0.9, 0.1)
    assert ppv == pytest.approx(0.08 / 0.17)
    assert npv == pytest.approx(0.81 / 0.83)


def test_predictive_values_of_a_sample():
    """Every point has every prevalence; more disease makes positives truer and negatives less so."""
    labels_N = np.repeat([True, False], 50)
    scores_N = np.concatenate([np.full(40, 0.9), np.full(10, 0.1), np.full(45, 0.1), np.full(5, 0.9)])
    points = [
        OperatingPoint(name=name, probability=cut, sensitivity=0, specificity=0)
        for name, cut in (("middle", 0.5), ("never", 1.0))
    ]
    found = calibration.predictive_values("rows", labels_N, scores_N, np.arange(100).astype(str), points)
    middle = [value for value in found if value.point == "middle"]
    assert [value.prevalence for value in middle] == list(calibration.PREVALENCES)
    assert middle[-1].ppv.value == pytest.approx(0.8 / 0.9)
    assert middle[-1].ppv.low < middle[-1].ppv.value < middle[-1].ppv.high
    assert [v.ppv.value for v in middle] == sorted(v.ppv.value for v in middle)
    assert [v.npv.value for v in middle] == sorted((v.npv.value for v in middle), reverse=True)
    assert all(v.ppv is None and v.npv is not None for v in found if v.point == "never")


def test_the_diagram_is_small_and_the_same_every_time(tmp_path):
    """Drawn twice it is one file to the byte, in which text is text."""
    labels_N, logits_N = calibrated(200)
    found = calibration.calibrate("dev", labels_N, logits_N, np.arange(200).astype(str), 1.0)
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    draw_reliability([found], one)
    draw_reliability([found], two)
    assert one.read_bytes() == two.read_bytes()
    assert b"share of films with COVID-19" in one.read_bytes()
    assert one.stat().st_size < 40_000
