"""Does a map point into the lungs? Mass inside, and the pointing game, beside what says nothing would reach.

The pointing game asks whether a map's maximum lies in the object (Zhang et al., IJCV 2018). A map that is the
same everywhere has the lungs' share of the area inside; a Gaussian around the film's middle stands for a map
that only knows that films are centred.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.evaluation.metrics import Estimate, bootstrap_mean
from training.explain.lungs import Lungs, Mask
from training.explain.maps import Maps

_GAUSSIAN = 0.25
"""Deviation of the centred Gaussian as a share of the side."""


class Location(BaseModel):
    """Where the maps of one class of films point; means over films."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    films: int
    without_positive: int
    """Films whose map is nowhere above 0: they have no mass and are in `films`, but not in `mass`."""
    mass: Estimate | None
    """Share of the map's positive part that lies in the lungs; None where no map has any."""
    lung_share: Estimate
    """The lungs' share of the area: the mass of a uniform map, and the pointing of one drawn at random."""
    mass_above_share: Estimate | None
    """Mass less lung share, film by film: chance is 0."""
    gaussian_mass: Estimate
    """Mass of the centred Gaussian."""
    pointing: Estimate
    """Share of films whose map is highest in the lungs."""
    pointing_above_share: Estimate
    """Pointing less lung share, film by film: chance is 0."""


def mass_inside(map_HW: Maps, mask_HW: Mask) -> float:
    """Share of a map's positive part inside the mask; NaN where there is none."""
    positive_HW = np.maximum(map_HW, 0).astype(np.float64)
    total = positive_HW.sum()
    return float(positive_HW[mask_HW].sum() / total) if total > 0 else float("nan")


def points_inside(map_HW: Maps, mask_HW: Mask) -> bool:
    """Whether a map's maximum lies in the mask."""
    return bool(mask_HW.ravel()[map_HW.argmax()])


def locate(maps_NHW: Maps, lungs: Sequence[Lungs], patients_N: NDArray[np.str_]) -> Location:
    """Measure the maps of some films against their lungs."""
    masks = [found.mask_HW for found in lungs]
    share_N = np.array([mask_HW.mean() for mask_HW in masks])
    mass_N = np.array([mass_inside(*pair) for pair in zip(maps_NHW, masks, strict=True)])
    pointing_N = np.array([points_inside(*pair) for pair in zip(maps_NHW, masks, strict=True)], np.float64)
    gaussian_HW = centred_gaussian(maps_NHW.shape[1])
    gaussian_N = np.array([mass_inside(gaussian_HW, mask_HW) for mask_HW in masks])
    there_N = np.isfinite(mass_N)
    return Location(
        films=len(masks),
        without_positive=int((~there_N).sum()),
        mass=bootstrap_mean(mass_N[there_N], patients_N[there_N]) if there_N.any() else None,
        lung_share=bootstrap_mean(share_N, patients_N),
        mass_above_share=bootstrap_mean((mass_N - share_N)[there_N], patients_N[there_N])
        if there_N.any()
        else None,
        gaussian_mass=bootstrap_mean(gaussian_N, patients_N),
        pointing=bootstrap_mean(pointing_N, patients_N),
        pointing_above_share=bootstrap_mean(pointing_N - share_N, patients_N),
    )


def centred_gaussian(side: int) -> Maps:
    """A map that says only that films are centred, `(side, side)`."""
    line = np.exp(-0.5 * (((np.arange(side) + 0.5) / side - 0.5) / _GAUSSIAN) ** 2)
    return np.asarray(np.outer(line, line), np.float32)
