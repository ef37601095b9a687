"""What a network looks at: the report's saliency, and the exact class activation map beside it.

The report's "heatmaps" are vanilla gradients (Simonyan et al., 2014): how far the logit moves for a small
change of a pixel, which is largest at edges and says little of where evidence lies. The class activation
map adds up to the logit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.report import networks


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One film as one network sees it."""

    logit: float
    """Positive means COVID-19."""
    saliency_HW: NDArray[np.float32]
    """Change of the logit by a pixel's change from black to white in one channel, were it linear."""
    evidence_hw: NDArray[np.float32] | None
    """Log-odds that the film would have if all of it looked like that point; its mean is the logit. None
    for a network without an exact map."""


def explain(network: nn.Module, film_HW: NDArray[np.uint8]) -> Explanation:
    """Explain the logit of a film of the side that the network takes."""
    pixels_13HW = _pixels(film_HW).expand(-1, 3, -1, -1).contiguous().requires_grad_()
    logit = networks.logits(network, pixels_13HW)[0]
    (gradient_13HW,) = torch.autograd.grad(logit, pixels_13HW)
    evidence_hw = None
    if networks.has_map(network):
        with torch.inference_mode():
            _, cams_Bhw = network(_pixels(film_HW))
        evidence_hw = (cams_Bhw[0] + network.head.bias).numpy()
    return Explanation(
        logit=float(logit.detach()),
        saliency_HW=gradient_13HW[0].abs().amax(dim=0).numpy(),
        evidence_hw=evidence_hw,
    )


def _pixels(film_HW: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(film_HW.copy())[None, None].float() / 255
