"""What a film teaches is what was published of it, and what nobody knows teaches nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from training import tasks
from training.films import datasets

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def row(films):
    """A film of the generated catalogue to make others from."""
    return datasets.read_rows(films)[0]


def nih(row, *findings, view="PA"):
    return dataclasses.replace(row, origin=tasks.NIH, positive=False, findings=frozenset(findings), view=view)


def test_targets_are_known_or_not(row):
    """A ChestX-ray14 film tells of every finding; a COVID film of none; a view is told where published."""
    covid = dataclasses.replace(row, origin="hannover", positive=True, findings=frozenset(), view="AP Supine")
    other = nih(row, "Edema", "Nodule", view="")
    first, second = tasks.targets([covid, other])
    assert first[:3].tolist()[0] == 1
    assert np.isnan(first[1])
    assert first[2] == 1
    assert np.isnan(first[3:]).all()
    assert second[0] == 0
    assert second[1] == 1  # edema is an opacity
    assert np.isnan(second[2])
    named = {name for name, value in zip(tasks.TASKS[3:], second[3:], strict=True) if value == 1}
    assert named == {"Edema", "Nodule"}
    assert tasks.targets([nih(row, "No Finding")])[0, 1] == 0


def test_an_unknown_target_teaches_nothing(row):
    """The loss, and so its gradient, does not depend on the logit of a target that nobody knows."""
    loss = tasks.TaskLoss((1.0, 0.5, 0.5, 1.0), positive_weight=1.0)
    targets_BT = torch.from_numpy(tasks.targets([nih(row, "Mass", view=""), nih(row, view="AP")]))
    logits_BT = torch.zeros_like(targets_BT, requires_grad=True)
    loss(logits_BT, targets_BT).backward()
    assert logits_BT.grad[0, 2] == 0
    assert logits_BT.grad[1, 2] != 0
    assert (logits_BT.grad[:, 3:] != 0).all()


def test_the_loss_is_the_weighted_sum_of_the_tasks(row):
    """At logit 0 every task costs log 2, whatever is known."""
    targets_BT = torch.from_numpy(tasks.targets([nih(row, "Mass"), nih(row)]))
    value = tasks.TaskLoss((1.0, 0.5, 0.25, 2.0), positive_weight=1.0)(
        torch.zeros_like(targets_BT), targets_BT
    )
    assert value.item() == pytest.approx(3.75 * np.log(2), rel=1e-5)


def test_both_classes_are_drawn_alike_and_small_sources_more_often(row):
    """Half the chance goes to each class; within one a film of a small source is drawn more often."""
    large = [dataclasses.replace(row, origin="hannover", positive=True) for _ in range(90)]
    small = [dataclasses.replace(row, origin="cxnet", positive=True) for _ in range(10)]
    rest = [nih(row, "Edema"), *(nih(row) for _ in range(199))]
    chances_N = tasks.strata([*large, *small, *rest])
    assert chances_N.sum() == pytest.approx(1)
    assert chances_N[:100].sum() == pytest.approx(0.5)
    assert chances_N[95] / chances_N[0] == pytest.approx(3)  # the root of 90 / 10
    assert chances_N[100] > chances_N[101]


def test_so_many_of_the_other_films_show_an_opacity(row):
    """The share is that of the films without COVID, whatever their numbers; without one it still sums up."""
    covid = [dataclasses.replace(row, origin="hannover", positive=True) for _ in range(5)]
    opaque, clear = [nih(row, "Edema")] * 3, [nih(row)] * 40
    chances_N = tasks.strata([*covid, *opaque, *clear], opacity_share=0.85)
    assert chances_N[:5].sum() == pytest.approx(0.5)
    assert chances_N[5:8].sum() == pytest.approx(0.5 * 0.85)
    assert tasks.strata([*covid, *clear], opacity_share=0.85)[5:].sum() == pytest.approx(0.5)


def test_only_the_network_is_served():
    """The other tasks' heads leave the served logit as it was."""
    torch.manual_seed(0)
    network = tasks.DenseNet121().eval()
    pixels = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        logits_BT, cams_Bhw = tasks.MultiTask(network).eval()(pixels)
        served_B, served_Bhw = network(pixels)
        torch.testing.assert_close(logits_BT[:, 0], served_B, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(cams_Bhw, served_Bhw)
    assert logits_BT.shape == (2, len(tasks.TASKS))
