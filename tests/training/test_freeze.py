"""A cut falls where the report's falls, and what is kept of a frozen part is what it would give again."""

from __future__ import annotations

import copy

import pytest
import torch

from training.networks.densenet import DenseNet121
from training.networks.freeze import Frozen, steps_of
from training.sweep.systems import FEATURE_TENSORS, report_systems

pytestmark = pytest.mark.training
CUTS = [system.trainable for system in report_systems() if system.network == "densenet-121"]


@pytest.fixture(scope="module")
def model():
    """A network whose normalisations have seen something."""
    torch.manual_seed(3)
    network = DenseNet121()
    with torch.no_grad():
        network.train()(torch.rand(4, 1, 64, 64))
    return network.eval()


def test_the_sweep_is_the_report_s():
    """Eleven cuts, counted from the output side."""
    assert CUTS == [0, 10, 30, 50, 80, 130, 181, 231, 261, 311, 362]


@pytest.mark.parametrize("trainable", CUTS)
def test_so_many_tensors_learn(model, trainable):
    """The last `trainable` tensors of the features learn, and the two of the head."""
    frozen = Frozen(copy.deepcopy(model), trainable)
    learning = [p for p in frozen.parameters() if p.requires_grad]
    assert len(learning) == trainable + 2
    features = list(model.features.parameters())
    assert [p.shape for p in learning[:-2]] == [p.shape for p in features[FEATURE_TENSORS - trainable :]]


@pytest.mark.parametrize("trainable", [0, 50, 130, 311, 362])
def test_the_chain_is_the_network(model, trainable):
    """Cut anywhere, prefix and suffix give the logit of the whole."""
    pixels = torch.rand(2, 1, 64, 64)
    frozen = Frozen(copy.deepcopy(model), trainable).eval()
    with torch.no_grad():
        torch.testing.assert_close(frozen(pixels), model(pixels)[0], rtol=1e-4, atol=1e-5)


def test_a_step_of_training_leaves_the_prefix_as_it_is(model):
    """What is frozen gives the same to the bit after the rest has learnt, so it may be kept."""
    frozen = Frozen(copy.deepcopy(model), 50)
    pixels = torch.rand(4, 1, 64, 64)
    frozen.train()
    with torch.no_grad():
        before = frozen.prefix(pixels)
    optimiser = torch.optim.Adam([p for p in frozen.parameters() if p.requires_grad], 0.1)
    logits_before = frozen.eval()(pixels).detach()
    frozen.train()(pixels).sum().backward()
    optimiser.step()
    with torch.no_grad():
        assert torch.equal(frozen.prefix(pixels), before)
        assert not torch.allclose(frozen.eval()(pixels), logits_before)


def test_nothing_is_kept_where_statistics_go_on(model):
    """As the report did it, a frozen part depends on the batch: there is no prefix to keep."""
    frozen = Frozen(copy.deepcopy(model), 50, updating=True)
    assert not frozen.cached
    mean = frozen.suffix[2].running_mean.clone()  # behind the input and the first convolution
    frozen.train()(torch.rand(4, 1, 64, 64))
    assert not torch.equal(frozen.suffix[2].running_mean, mean)


def test_the_chain_has_every_layer(model):
    """Stem, 58 dense layers, three transitions and the last normalisation."""
    assert len(steps_of(model)) == 66


def test_more_tensors_than_there_are(model):
    """A cut outside the network is a mistake of the caller."""
    with pytest.raises(ValueError, match="363 of 362"):
        Frozen(model, FEATURE_TENSORS + 1)
