"""Deletion and insertion (Petsiuk et al., BMVC 2018): does the score rest on what a map marks?

The points of a film are taken out in the order of a map, the highest first, and the probability is followed:
the sooner it falls, the better the map tells what the score rests on. Insertion is the other way about, from
a blurred film. A random map as coarse as the activation map is what to be better than.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.device import Device
from training.evaluation import metrics
from training.evaluation.metrics import Estimate, bootstrap_mean
from training.explain.maps import Maps, logits
from training.networks.densenet import DenseNet121

STEPS = 10
MIDDLE = np.uint8(127)
"""What a deleted point becomes: the mean of an equalised film."""
_BLUR = 1 / 20
"""Deviation of the blur from which insertion begins, as a share of the side."""
_CELL = 32
"""Pixels of a film behind one point of an activation map."""


class Removal(BaseModel):
    """Areas under the curves of the probability; means over films."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    order: str
    """The map by which points go: `cam`, `saliency` or `random`."""
    deletion: Estimate
    """Less is better."""
    insertion: Estimate
    """More is better."""
    deletion_below_random: Estimate
    """Film by film; above 0 is better than chance."""
    insertion_above_random: Estimate


def remove(
    model: DenseNet121,
    inputs_NHW: NDArray[np.uint8],
    patients_N: NDArray[np.str_],
    orders: dict[str, Maps],
    device: Device,
    *,
    temperature: float,
    seed: int,
) -> tuple[Removal, ...]:
    """Follow the probability of COVID-19 while points go in the order of each map, and of random ones.

    Args:
        model: the network.
        inputs_NHW: recipe outputs of films with COVID-19.
        patients_N: of each film, for the intervals.
        orders: maps `(N, H, W)` by their names.
        device: what it is computed on.
        temperature: probability = sigmoid(logit / temperature).
        seed: of the random maps.
    """
    everything = orders | {"random": random_maps(inputs_NHW.shape, seed)}
    areas = {}
    for order, maps_NHW in everything.items():
        curves = [
            curve(model, deleted(film_HW, map_HW) + inserted(film_HW, map_HW), device, temperature)
            for film_HW, map_HW in zip(inputs_NHW, maps_NHW, strict=True)
        ]
        halves_N2S = np.array(curves).reshape(len(curves), 2, STEPS + 1)
        areas[order] = np.trapezoid(halves_N2S, dx=1 / STEPS, axis=2).T
    chance = areas["random"]
    return tuple(
        Removal(
            order=order,
            deletion=bootstrap_mean(deletion_N, patients_N),
            insertion=bootstrap_mean(insertion_N, patients_N),
            deletion_below_random=bootstrap_mean(chance[0] - deletion_N, patients_N),
            insertion_above_random=bootstrap_mean(insertion_N - chance[1], patients_N),
        )
        for order, (deletion_N, insertion_N) in areas.items()
    )


def deleted(film_HW: NDArray[np.uint8], map_HW: Maps) -> list[NDArray[np.uint8]]:
    """The film with 0, 10 ... 100 % of its points gone, the highest of the map first."""
    return [np.where(gone_HW, MIDDLE, film_HW) for gone_HW in _first(map_HW)]


def inserted(film_HW: NDArray[np.uint8], map_HW: Maps) -> list[NDArray[np.uint8]]:
    """The blurred film with 0, 10 ... 100 % of its points sharp again, the highest of the map first."""
    blurred_HW = cv2.GaussianBlur(film_HW, (0, 0), film_HW.shape[0] * _BLUR)
    return [np.where(back_HW, film_HW, blurred_HW) for back_HW in _first(map_HW)]


def random_maps(shape: tuple[int, ...], seed: int) -> Maps:
    """Noise `(N, H, W)` as coarse as an activation map."""
    random, (count, height, width) = np.random.default_rng(seed), shape
    noise_Nhw = random.random((count, height // _CELL, width // _CELL), np.float32)
    return np.stack([cv2.resize(noise_hw, (width, height)) for noise_hw in noise_Nhw])


def curve(
    model: DenseNet121, films: list[NDArray[np.uint8]], device: Device, temperature: float
) -> metrics.Scores:
    """Probability of COVID-19 of each film, in one batch."""
    return metrics.probabilities(logits(model, np.stack(films), device, len(films)), temperature)


def _first(map_HW: Maps) -> list[NDArray[np.bool_]]:
    place = np.empty(map_HW.size, np.int64)
    place[np.argsort(-map_HW.ravel(), kind="stable")] = np.arange(map_HW.size)
    cuts = [round(map_HW.size * step / STEPS) for step in range(STEPS + 1)]
    return [(place < cut).reshape(map_HW.shape) for cut in cuts]
