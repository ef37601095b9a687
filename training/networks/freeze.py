"""Freezing DenseNet-121 from the input side, and what a frozen part always gives.

The report freezes parameter tensors in the order of `.parameters()`. Layers whose tensors are all frozen
form the *prefix*: without augmentation, and with fixed normalisation statistics, it gives the same
features for a film in every epoch, so they are computed once. Where a cut falls inside a layer, that
layer is computed anew each time. With `frozen_statistics = "updating"` the prefix's output depends on the
batch that a film stands in, nothing may be kept, and nothing is.
"""

from __future__ import annotations

from itertools import takewhile
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.densenet import _DenseLayer

from training.networks.densenet import DenseNet121, normalise
from training.sweep.systems import FEATURE_TENSORS


class Grow(nn.Module):
    """A dense layer as one step of a chain: its input, and its new channels behind it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """From `(B, C, H, W)` to `(B, C + 32, H, W)`."""
        return torch.cat([features_BCHW, self.layer(features_BCHW)], dim=1)


class Head(nn.Module):
    """The logit of the last features."""

    def __init__(self, model: DenseNet121) -> None:
        super().__init__()
        self.linear = model.head

    def forward(self, features_BDhw: Tensor) -> Tensor:
        """From `(B, 1024, h, w)` to `(B,)`."""
        pooled_BD = torch.relu(features_BDhw).float().mean(dim=(2, 3))
        with torch.autocast(pooled_BD.device.type, enabled=False):  # bfloat16 logits would tie
            logits_B: Tensor = self.linear(pooled_BD)[:, 0]
        return logits_B


class Input(nn.Module):
    """A grey film as the network's first convolution takes it."""

    def forward(self, pixels_B1HW: Tensor) -> Tensor:
        """From `(B, 1, H, W)` in [0, 1] to `(B, 3, H, W)`."""
        return normalise(pixels_B1HW)


def steps_of(model: DenseNet121) -> list[nn.Module]:
    """`features` as a chain of 66 steps, in the order of the parameters, without the input and the head."""
    steps: list[nn.Module] = []
    for child in cast(nn.Sequential, model.features):
        layers = [layer for layer in child.children() if isinstance(layer, _DenseLayer)]
        steps.extend([Grow(layer) for layer in layers] or [child])
    return steps


class Frozen(nn.Module):
    """DenseNet-121 of which the last `trainable` parameter tensors of `features` learn, and the head.

    The parts share their modules with the model that is given.
    """

    def __init__(self, model: DenseNet121, trainable: int, *, updating: bool = False) -> None:
        super().__init__()
        parameters = list(model.features.parameters())
        if not 0 <= trainable <= len(parameters) == FEATURE_TENSORS:
            raise ValueError(f"{trainable} of {len(parameters)} tensors cannot be trainable")
        frozen = {id(parameter) for parameter in parameters[: FEATURE_TENSORS - trainable]}
        for parameter in parameters:
            parameter.requires_grad_(id(parameter) not in frozen)
        steps = steps_of(model)

        def is_frozen(step: nn.Module) -> bool:
            return all(id(parameter) in frozen for parameter in step.parameters())

        count = len(list(takewhile(is_frozen, steps))) if frozen and not updating else 0
        self.prefix = nn.Sequential(Input(), *steps[:count]) if count else nn.Identity()
        self.suffix = nn.Sequential(*([] if count else [Input()]), *steps[count:], Head(model))
        # Inside a list, or `state_dict` would hold every tensor twice.
        self._whole = [model]
        self.cached = bool(count)
        """Whether the prefix gives the same for a film in every epoch."""
        self._fixed = [
            module
            for module in model.features.modules()
            if isinstance(module, nn.BatchNorm2d) and id(module.weight) in frozen and not updating
        ]

    @property
    def whole(self) -> DenseNet121:
        """The network that is cut here, with the same modules."""
        return self._whole[0]

    def train(self, mode: bool = True) -> Frozen:
        """Train or evaluate; fixed normalisations stay as in evaluation."""
        super().train(mode)
        for module in self._fixed:
            module.eval()
        return self

    def forward(self, pixels_B1HW: Tensor) -> Tensor:
        """Logits `(B,)` of films."""
        logits_B: Tensor = self.suffix(self.prefix(pixels_B1HW))
        return logits_B
