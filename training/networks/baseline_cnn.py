"""The report's baseline CNN: three convolutions and two dense layers on 640 x 640 films."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CHANNELS = (16, 32, 64)
_HIDDEN = 512
_DROPOUT = 0.25


class BaselineCNN(nn.Module):
    """Models 1-4 of the report; 199,385,121 parameters at 640 pixels, nearly all in one dense layer.

    The films are grey; as the report does, three equal channels go in.
    """

    def __init__(self, size: int = 640, *, regularised: bool = False) -> None:
        """Build it.

        Args:
            size: side of the films in pixels.
            regularised: batch normalisation at the input, and dropout after each pooling. The report does
                not give its rate; ours is 0.25.
        """
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm2d(3)] if regularised else []
        channels = 3
        for wider in _CHANNELS:
            layers += [nn.Conv2d(channels, wider, 3), nn.ReLU(), nn.MaxPool2d(2)]
            layers += [nn.Dropout(_DROPOUT)] if regularised else []
            channels, size = wider, (size - 2) // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * size * size, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1)
        )

    def forward(self, pixels_B1HW: Tensor) -> Tensor:
        """Logits `(B,)` of films `(B, 1, H, W)` in [0, 1]."""
        hidden_BD = self.classifier[:-1](self.features(pixels_B1HW.expand(-1, 3, -1, -1)))
        last = self.classifier[-1]
        with torch.autocast(hidden_BD.device.type, enabled=False):  # bfloat16 logits would tie
            logits_B: Tensor = last(hidden_BD.to(last.weight.dtype))[:, 0]
        return logits_B


def parameters_of(model: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(torch.numel(parameter) for parameter in model.parameters())
