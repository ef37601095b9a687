"""Lung fields on drawn films where the truth is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from training.explain.lungs import lung_fields
from worker import preprocess

pytestmark = pytest.mark.training


def drawn(centres=((0.30, 0.45), (0.70, 0.45)), opacity=False):
    """A bright body with dark lungs, and the true lungs."""
    film_HW, truth_HW = np.full((512, 512), 180, np.uint8), np.zeros((512, 512), np.uint8)
    for x, y in centres:
        for canvas_HW, value in ((film_HW, 60), (truth_HW, 1)):
            cv2.ellipse(canvas_HW, (round(x * 512), round(y * 512)), (70, 130), 0, 0, 360, value, -1)
    if opacity:
        cv2.circle(film_HW, (153, 260), 22, 180, -1)
    noisy_HW = film_HW + np.random.default_rng(0).normal(0, 8, film_HW.shape)
    return preprocess.to_input(noisy_HW.clip(0, 255).astype(np.uint8)), cv2.resize(
        truth_HW, (preprocess.SIZE, preprocess.SIZE)
    ) > 0


def dice(one_HW, other_HW):
    return 2 * (one_HW & other_HW).sum() / (one_HW.sum() + other_HW.sum())


@pytest.mark.parametrize("opacity", [False, True])
def test_two_dark_fields_are_found(opacity):
    """The fields come out nearly as they were drawn, an opacity within one of them included."""
    input_HW, truth_HW = drawn(opacity=opacity)
    found = lung_fields(input_HW)
    assert not found.average
    assert dice(found.mask_HW, truth_HW) > 0.93


def test_lungs_that_lie_elsewhere_are_followed():
    """Fields that are moved are found where they are, and not where lungs are on average."""
    input_HW, truth_HW = drawn(((0.34, 0.50), (0.74, 0.50)))
    found = lung_fields(input_HW)
    assert not found.average
    assert dice(found.mask_HW, truth_HW) > 0.85


@pytest.mark.parametrize("value", [0, 128])
def test_a_film_without_lungs_gets_the_average_shape(value):
    """Where nothing is to be found, the average shape stands, and says so."""
    found = lung_fields(np.full((preprocess.SIZE, preprocess.SIZE), value, np.uint8))
    assert found.average
    assert 0.15 < found.mask_HW.mean() < 0.35


def test_one_lung_is_no_pair():
    """With one side white, the average shape stands."""
    assert lung_fields(drawn(((0.30, 0.45),))[0]).average
