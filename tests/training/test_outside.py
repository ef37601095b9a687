"""The share of the map outside the lungs: its value, its gradient, and what learning makes of it."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from training import outside
from training.films import datasets
from training.settings import Stage, TaskWeights, TrainingSettings
from training.train import LOG, train

pytestmark = pytest.mark.training


def test_the_share_is_that_of_the_positive_part_outside():
    """Three of four parts of a large map lie outside; what is below 0 is no part of it."""
    lungs_Bhw = torch.tensor([[[1.0, 0.0], [0.0, -0.0]], [[1.0, 0.5], [0.0, 0.0]]])
    cams_Bhw = 1e6 * torch.tensor([[[1.0, 1.0], [2.0, -9.0]], [[0.0, 1.0], [0.0, -1.0]]])
    assert outside.share_outside(cams_Bhw, lungs_Bhw).item() == pytest.approx((0.75 + 0.5) / 2, rel=1e-4)


def test_a_map_that_is_nearly_nothing_needs_no_place():
    """Where the map is nowhere above 0, or hardly, there is nothing to lower; it is a number all the same."""
    lungs_Bhw = torch.zeros(2, 3, 3)
    assert outside.share_outside(torch.full((2, 3, 3), -4.0), lungs_Bhw).item() == 0
    assert outside.share_outside(torch.full((2, 3, 3), 1e-3), lungs_Bhw).item() < 0.01


def test_the_gradient_moves_the_map_into_the_lungs():
    """A step down the gradient lowers the map outside and never inside."""
    cams_Bhw = torch.full((1, 2, 2), 3.0, requires_grad=True)
    lungs_Bhw = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    outside.share_outside(cams_Bhw, lungs_Bhw).backward()
    assert (cams_Bhw.grad[0, :, 1] > 0).all()
    assert (cams_Bhw.grad[0, :, 0] < 0).all()


@pytest.mark.parametrize("size", [64, 224])
def test_lungs_are_found_on_the_map_of_any_size(size):
    """Two dark fields fill their cells; the middle of the edge and the corners are outside."""
    film_HW = np.full((size, size), 180, np.uint8)
    for x in (0.30, 0.70):
        cv2.ellipse(film_HW, (round(x * size), round(0.45 * size)), (size // 7, size // 4), 0, 0, 360, 60, -1)
    lungs_Bhw = outside.lungs_of(film_HW[None], 8)
    assert lungs_Bhw.shape == (1, 8, 8)
    assert 0 <= lungs_Bhw.min() <= lungs_Bhw.max() <= 1
    assert lungs_Bhw[0, 3, 2] == lungs_Bhw[0, 3, 5] == 1
    assert not lungs_Bhw[0, [0, 0, -1, -1], [0, -1, 0, -1]].any()


def test_learning_lowers_what_lies_outside(films, tmp_path):
    """With nothing else in its loss a run lowers the share outside; without the term the loss is 0."""
    rows = datasets.read_rows(films)
    inputs_NHW = datasets.load_inputs(films, rows, tmp_path / "cache")
    plan = TrainingSettings(stages=(Stage(size=64, epochs=3),), films_per_epoch=16, batch=8, evaluate_every=9)
    losses = {}
    for weight in (0.0, 1.0):
        weights = TaskWeights(covid=0.0, lungs=weight)
        train(plan.model_copy(update={"weights": weights}), rows, inputs_NHW, tmp_path / str(weight))
        lines = (tmp_path / str(weight) / LOG).read_text().splitlines()
        losses[weight] = [json.loads(line)["loss"] for line in lines]
    assert losses[0.0] == [0, 0, 0]
    assert 0 <= losses[1.0][-1] < losses[1.0][0] <= 1
