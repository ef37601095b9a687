"""Model randomisation (Adebayo et al., NeurIPS 2018): does a map change when what was learnt is taken away?

From the head to the first convolution, one part after the other is drawn anew, and stays so. A map that shows
what the network has learnt loses its likeness with the original; one that shows the film's edges keeps it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import nn

from training.device import Device
from training.evaluation.metrics import Estimate, bootstrap_mean
from training.explain.maps import (
    Maps,
    activation_maps,
    rank_correlation,
    saliency_maps,
    structural_similarity,
)
from training.networks.densenet import DenseNet121

PARTS = {
    "head": ("head",),
    "dense block 4": ("features.norm5", "features.denseblock4"),
    "dense block 3": ("features.transition3", "features.denseblock3"),
    "dense block 2": ("features.transition2", "features.denseblock2"),
    "dense block 1": ("features.transition1", "features.denseblock1"),
    "first convolution": ("features.norm0", "features.conv0"),
}
"""In the order in which they are drawn anew."""


class Randomised(BaseModel):
    """How alike maps are to the original after all parts down to `part` were drawn anew; means over films."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    part: str
    cam_correlation: Estimate
    """Spearman, point by point."""
    cam_similarity: Estimate
    """SSIM of the maps, each stretched to its range."""
    saliency_correlation: Estimate
    saliency_similarity: Estimate


def cascade(
    model: DenseNet121,
    inputs_NHW: NDArray[np.uint8],
    patients_N: NDArray[np.str_],
    original: tuple[Maps, Maps],
    device: Device,
    *,
    seed: int,
) -> tuple[Randomised, ...]:
    """Draw part after part anew and compare the maps.

    Args:
        model: the network; it stays as it is.
        inputs_NHW: recipe outputs.
        patients_N: of each film, for the intervals.
        original: activation and saliency maps of the network as it is, `(N, H, W)` each.
        device: what it is computed on.
        seed: of the weights that are drawn.
    """
    found = []
    for part, randomised in randomise(model, inputs_NHW, device, seed=seed):
        now = activation_maps(randomised, inputs_NHW, device), saliency_maps(randomised, inputs_NHW, device)
        figures = [
            bootstrap_mean(np.array([alike(*pair) for pair in zip(before, after, strict=True)]), patients_N)
            for before, after in zip(original, now, strict=True)
            for alike in (rank_correlation, structural_similarity)
        ]
        names = ("cam_correlation", "cam_similarity", "saliency_correlation", "saliency_similarity")
        found.append(Randomised(part=part, **dict(zip(names, figures, strict=True))))
    return tuple(found)


def randomise(
    model: DenseNet121, inputs_NHW: NDArray[np.uint8], device: Device, *, seed: int
) -> Iterator[tuple[str, DenseNet121]]:
    """The network with one part more drawn anew each time; the same object, so use it before the next."""
    randomised = copy.deepcopy(model).eval()
    modules = dict(randomised.named_modules())
    drawn: list[nn.BatchNorm2d] = []
    for number, (part, names) in enumerate(PARTS.items()):
        with torch.random.fork_rng():
            torch.manual_seed(seed + number)
            for name in names:
                for module in modules[name].modules():
                    _draw(module)
                    drawn += [module] if isinstance(module, nn.BatchNorm2d) else []
        _settle(randomised, drawn, inputs_NHW, device)
        yield part, randomised


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.BatchNorm2d | nn.Linear):
        module.reset_parameters()


def _settle(
    model: DenseNet121, drawn: list[nn.BatchNorm2d], inputs_NHW: NDArray[np.uint8], device: Device
) -> None:
    """Give the new normalisations the statistics of these films: without them a deep random net is mute."""
    if not drawn:
        return
    for module in drawn:
        module.reset_running_stats()
        module.momentum = None  # a plain mean over the batches
        module.train()
    with torch.no_grad(), device.autocast():
        for start in range(0, len(inputs_NHW), 8):
            model(device.pixels(torch.from_numpy(inputs_NHW[start : start + 8])))
    for module in drawn:
        module.eval()
