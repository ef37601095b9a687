"""The mean of networks that began alike is a run like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dicom_node.errors import ConfigurationError
from training import checkpoint, tasks
from training.evaluation.leave_out import leave_one_source_out
from training.films import datasets
from training.networks.densenet import DenseNet121, normalise
from training.settings import Stage, TrainingSettings
from training.soup import average_runs
from training.train import CHECKPOINT, infer, load_network, train

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def began(films, tmp_path_factory):
    """Catalogue, two runs of other seeds from one set of weights, and a third from random ones."""
    folder = tmp_path_factory.mktemp("soup")
    rows = datasets.read_rows(films)
    inputs_NHW = datasets.load_inputs(films, rows, folder / "cache")
    plan = TrainingSettings(stages=(Stage(size=32, epochs=1),), films_per_epoch=8, batch=4, threads=1)
    train(plan, rows, inputs_NHW, folder / "random")
    init = f"pretrained:{folder / 'random' / CHECKPOINT}"
    for seed in (1, 2):
        train(plan.model_copy(update={"seed": seed, "init": init}), rows, inputs_NHW, folder / str(seed))
    return rows, inputs_NHW, folder


def _weights(run):
    network = tasks.MultiTask(DenseNet121())
    checkpoint.load_average(run / CHECKPOINT, network)
    return network


def test_the_mean_is_the_mean(began, tmp_path):
    """Every weight is the mean of two, the statistics are those of the films, and the run says of what."""
    rows, inputs_NHW, folder = began
    members = [folder / "1", folder / "2"]
    whole = average_runs(members, rows, inputs_NHW, tmp_path)
    one, two, mean = (dict(_weights(run).named_parameters()) for run in (*members, tmp_path))
    assert any((one[name] != two[name]).any() for name in one)
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    assert whole.mean_of == tuple(checkpoint.digest(run / CHECKPOINT) for run in members)
    # In evaluation each channel behind the first normalisation has the mean of its bias, over all films.
    network = load_network(tmp_path)
    learnt_N = np.array([row.trainable for row in rows])
    pixels = torch.from_numpy(inputs_NHW[learnt_N][:, None] / np.float32(255))
    with torch.inference_mode():
        stem = network.features.conv0(normalise(pixels))
        normalised = network.features.norm0(stem)
    torch.testing.assert_close(normalised.mean((0, 2, 3)), network.features.norm0.bias, atol=0.05, rtol=0)
    assert np.isfinite(infer(network, inputs_NHW)).all()


def test_what_did_not_begin_alike_has_no_mean(began, tmp_path):
    """One run, a run from random weights, no run, and other films: each is refused by name."""
    rows, inputs_NHW, folder = began
    for members, sentence in (
        ([folder / "1"], "needs two runs"),
        ([folder / "1", folder / "random"], "random did not begin with the same weights"),
        ([folder / "random", folder / "1"], "did not begin with the same weights"),
        ([folder / "1", folder / "2" / ".." / "1"], "named twice"),
        ([folder / "1", folder / "absent"], "no run in"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            average_runs(members, rows, inputs_NHW, tmp_path / "mean")
    with pytest.raises(ConfigurationError, match="same films"):
        average_runs([folder / "1", folder / "2"], rows[1:], inputs_NHW[1:], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_finished_run_is_not_trained_again(began, tmp_path):
    """A mean has no optimiser to go on with: `train` leaves it as it is, and so does a fold made of it."""
    rows, inputs_NHW, folder = began
    whole = average_runs([folder / "1", folder / "2"], rows, inputs_NHW, tmp_path / "web")
    before = checkpoint.digest(tmp_path / "web" / CHECKPOINT)
    train(whole.settings, rows, inputs_NHW, tmp_path / "web")
    assert checkpoint.digest(tmp_path / "web" / CHECKPOINT) == before
    with pytest.raises(ConfigurationError, match="`moon` is no fold"):
        leave_one_source_out(
            whole.settings, rows, inputs_NHW, np.zeros((len(rows), 8)), tmp_path, only=["moon"]
        )
