"""What the score is worth on the lungs alone, and without them.

Where a map lies says where the network writes its evidence, not where it reads it: a point of the last
features sees far beyond its own cell. Here one part of each film is grey, so that nothing can be read there.
Its outline stays, and with it the shape of the lungs; and no such film was learnt from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.evaluation import metrics
from training.evaluation.metrics import Estimate
from training.explain.lungs import Lungs, grown
from training.explain.removal import MIDDLE

Logits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From recipe outputs `(N, H, W)` to logits `(N,)`."""


class Regions(BaseModel):
    """AUROC on the same films, whole and in parts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    whole: Estimate
    lungs_alone: Estimate
    """All but the lungs and their margin is grey."""
    without_lungs: Estimate
    """The lungs and their margin are grey."""


def cover(
    logits_of: Logits,
    films_NHW: NDArray[np.uint8],
    lungs: Sequence[Lungs],
    labels_N: NDArray[np.bool_],
    patients_N: NDArray[np.str_],
) -> Regions:
    """Measure a network on whole films, on their lungs alone, and without them."""
    inside_NHW = np.stack([grown(found.mask_HW) for found in lungs])

    def area(shown_NHW: NDArray[np.uint8]) -> Estimate:
        return metrics.bootstrap(metrics.auroc, labels_N, logits_of(shown_NHW), patients_N)

    return Regions(
        whole=area(films_NHW),
        lungs_alone=area(np.where(inside_NHW, films_NHW, MIDDLE)),
        without_lungs=area(np.where(inside_NHW, MIDDLE, films_NHW)),
    )
