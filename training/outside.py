"""How much of a class activation map lies outside the lungs: what training may ask a network to keep low.

A network that tells sources apart looks at necks, shoulders and borders, and is right for reasons that no
other hospital shares. Ross, Hughes and Doshi-Velez ("Right for the right reasons", IJCAI 2017) add to the
loss what an explanation marks where nothing may be found; here the explanation is exact, the map whose mean
is the logit, and the place is outside the lung fields of each view.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.explain.lungs import grown, lung_fields

_LITTLE = 1.0
"""Added to a map's positive sum, in logits times cells: a map that is nearly nothing needs no place."""


def lungs_of(views_BHW: NDArray[np.uint8], side: int) -> Tensor:
    """How much of each cell of a map is lung or its margin, `(B, side, side)` in [0, 1].

    Args:
        views_BHW: films as the network sees them, uint8.
        side: of the map.
    """
    masks = [grown(lung_fields(view_HW).mask_HW) for view_HW in views_BHW]
    return nn.functional.adaptive_avg_pool2d(torch.from_numpy(np.stack(masks)).float(), side)


def share_outside(cams_Bhw: Tensor, lungs_Bhw: Tensor) -> Tensor:
    """Mean over films of the share of a map's positive part that lies outside the lungs, in [0, 1]."""
    positive_Bhw = torch.relu(cams_Bhw)
    outside_B = (positive_Bhw * (1 - lungs_Bhw)).sum(dim=(1, 2))
    return (outside_B / (positive_Bhw.sum(dim=(1, 2)) + _LITTLE)).mean()
