"""The network that a run of the report's systems ended with."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

from training import checkpoint
from training.networks.baseline_cnn import BaselineCNN
from training.networks.densenet import DenseNet121
from training.networks.resnet import ResNet18
from training.sweep import runs


def load_best(run: Path) -> nn.Module:
    """The network of the run's best epoch on the processor, set to evaluate.

    Raises:
        ConfigurationError: the run has no weights, or those of another network.
    """
    system = runs.read_configuration(run).system
    network: nn.Module
    match system.network:
        case "baseline-cnn":
            network = BaselineCNN(system.size, regularised=system.regularised)
        case "resnet-18":
            network = ResNet18()
        case "densenet-121":
            network = DenseNet121()
    checkpoint.load_average(run / runs.BEST, network)
    return network.eval().requires_grad_(False)


def has_map(network: nn.Module) -> TypeGuard[DenseNet121]:
    """Whether the network gives an exact class activation map."""
    return isinstance(network, DenseNet121)


def logits(network: nn.Module, pixels_BCHW: Tensor) -> Tensor:
    """Logits `(B,)` of films in [0, 1] with one channel, or with three equal ones."""
    answer = network(pixels_BCHW)
    logits_B: Tensor = answer[0] if isinstance(answer, tuple) else answer
    return logits_B


def activations(network: DenseNet121, pixels_B1HW: Tensor) -> dict[str, Tensor]:
    """What each child of `features` gives, `(B, C, h, w)` by its name, in their order."""
    seen: dict[str, Tensor] = {}
    hooks = [
        child.register_forward_hook(
            # A copy: the ReLU behind writes into what the normalisation gave.
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output.detach().clone())
        )
        for name, child in network.features.named_children()
    ]
    try:
        with torch.inference_mode():
            network(pixels_B1HW)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
