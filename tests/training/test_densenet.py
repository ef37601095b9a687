"""The network explains its own logit."""

from __future__ import annotations

import pytest
import torch

from training.networks.densenet import DenseNet121

pytestmark = pytest.mark.training


def test_the_map_is_the_whole_logit():
    """The mean of the class activation map plus the bias is the logit, and a map cell is 32 pixels wide."""
    torch.manual_seed(0)
    model = DenseNet121().eval()
    with torch.inference_mode():
        model.head.bias.fill_(0.25)
        logits_B, cams_Bhw = model(torch.rand(2, 1, 128, 96))
    assert cams_Bhw.shape == (2, 4, 3)
    assert cams_Bhw.std() > 0
    torch.testing.assert_close(cams_Bhw.mean(dim=(1, 2)) + 0.25, logits_B)


def test_the_logit_is_the_classical_head():
    """Map first and mean afterwards is what pooling first and a linear layer afterwards gives."""
    torch.manual_seed(0)
    model = DenseNet121().eval()
    pixels_B1HW = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        normal = (pixels_B1HW - 0.5) * 12**0.5
        features_BDhw = torch.relu(model.features(normal.repeat(1, 3, 1, 1)))
        classical_B = model.head(features_BDhw.mean(dim=(2, 3)))[:, 0]
        torch.testing.assert_close(model(pixels_B1HW)[0], classical_B, rtol=1e-4, atol=1e-5)


def test_features_are_counted_as_in_the_literature():
    """362 parameter tensors lie before the head, which is what freezing counts."""
    assert len(list(DenseNet121().features.parameters())) == 362
