"""The report's ResNet-18, from random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from training.networks.densenet import normalise


class ResNet18(nn.Module):
    """ResNet-18 with one logit (He et al., CVPR 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = resnet18(weights=None, num_classes=1)
        self.head, self.network.fc = self.network.fc, nn.Identity()

    def forward(self, pixels_B1HW: Tensor) -> Tensor:
        """Logits `(B,)` of films `(B, 1, H, W)` in [0, 1]."""
        pooled_BD = self.network(normalise(pixels_B1HW))
        with torch.autocast(pooled_BD.device.type, enabled=False):  # bfloat16 logits would tie
            logits_B: Tensor = self.head(pooled_BD.to(self.head.weight.dtype))[:, 0]
        return logits_B
