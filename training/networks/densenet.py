"""DenseNet-121 with one logit, and the exact class activation map behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import densenet121

# An equalised film is uniform on [0, 1]: mean 1/2, standard deviation 1/sqrt(12).
INPUT_MEAN, INPUT_DEVIATION = 0.5, 12**-0.5


def normalise(pixels_B1HW: Tensor) -> Tensor:
    """Grey in [0, 1] to three equal channels `(B, 3, H, W)` of mean 0 and deviation 1."""
    return ((pixels_B1HW - INPUT_MEAN) / INPUT_DEVIATION).expand(-1, 3, -1, -1)


class DenseNet121(nn.Module):
    """The network that is served.

    `logit = mean(cam) + bias`, exactly: the head is linear behind global average pooling, so the map
    is its weights over the last features and explains the whole logit (Zhou et al., CVPR 2016).
    """

    def __init__(self) -> None:
        super().__init__()
        self.features: nn.Module = densenet121(weights=None).features
        self.head = nn.Linear(1024, 1)

    def last(self, pixels_B1HW: Tensor) -> Tensor:
        """The features that are pooled, `(B, 1024, H / 32, W / 32)`, none below 0, float32."""
        dtype = next(self.features.parameters()).dtype  # half in an exported model
        return torch.relu(self.features(normalise(pixels_B1HW).to(dtype))).float()

    def cams(self, last_BDhw: Tensor) -> Tensor:
        """Class activation maps `(B, h, w)` of the last features; their mean and the bias are the logit."""
        return (last_BDhw * self.head.weight.view(1, -1, 1, 1)).sum(dim=1)

    def forward(self, pixels_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Score films.

        Args:
            pixels_B1HW: float32 in [0, 1]; sides are multiples of 32.

        Returns:
            Logits `(B,)` and class activation maps `(B, H / 32, W / 32)`, both float32.
        """
        cams_Bhw = self.cams(self.last(pixels_B1HW))
        return cams_Bhw.mean(dim=(1, 2)) + self.head.bias, cams_Bhw
