"""Maps of a film: the exact class activation map and the saliency, and how alike two maps are."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from training.device import Device
from training.networks.densenet import DenseNet121

Maps = NDArray[np.float32]
_WINDOW = 1.5
"""Pixels, the deviation of the Gaussian window of SSIM."""
_K1, _K2 = 0.01, 0.03


def activation_maps(
    model: DenseNet121, inputs_NHW: NDArray[np.uint8], device: Device, batch: int = 16
) -> Maps:
    """Class activation maps `(N, H, W)` as the worker's page shows them: signed, spread over the film."""
    side = inputs_NHW.shape[1:][::-1]
    return np.stack(
        [
            cv2.resize(cam_hw, side, interpolation=cv2.INTER_LINEAR)
            for _, cams_Bhw in _forward(model, inputs_NHW, device, batch)
            for cam_hw in cams_Bhw
        ]
    )


def logits(
    model: DenseNet121, inputs_NHW: NDArray[np.uint8], device: Device, batch: int = 16
) -> NDArray[np.float32]:
    """Logits `(N,)` of recipe outputs `(N, H, W)`, in the precision that maps are computed in."""
    return np.concatenate([logits_B for logits_B, _ in _forward(model, inputs_NHW, device, batch)])


def _forward(
    model: DenseNet121, inputs_NHW: NDArray[np.uint8], device: Device, batch: int
) -> Iterator[tuple[NDArray[np.float32], Maps]]:
    model.eval()
    for start in range(0, len(inputs_NHW), batch):
        with torch.inference_mode(), device.autocast():
            logits_B, cams_Bhw = model(device.pixels(torch.from_numpy(inputs_NHW[start : start + batch])))
        yield logits_B.float().cpu().numpy(), cams_Bhw.float().cpu().numpy()


def saliency_maps(model: DenseNet121, inputs_NHW: NDArray[np.uint8], device: Device, batch: int = 8) -> Maps:
    """Saliency `(N, H, W)`: the absolute gradient of the logit (Simonyan et al., 2013), as in the report."""
    model.eval()
    maps = []
    for start in range(0, len(inputs_NHW), batch):
        pixels_B1HW = device.pixels(torch.from_numpy(inputs_NHW[start : start + batch])).requires_grad_()
        with device.autocast():
            logits_B, _ = model(pixels_B1HW)
        (slopes_B1HW,) = torch.autograd.grad(logits_B.float().sum(), pixels_B1HW)
        maps.append(slopes_B1HW[:, 0].abs().float().cpu().numpy())
    return np.concatenate(maps)


def rank_correlation(one_HW: Maps, other_HW: Maps) -> float:
    """Spearman's correlation of two maps, point by point; 0 where one of them is flat."""
    one, other = rankdata(one_HW.ravel()), rankdata(other_HW.ravel())
    one, other = one - one.mean(), other - other.mean()
    norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float(one @ other) / norm if norm else 0.0


def structural_similarity(one_HW: Maps, other_HW: Maps) -> float:
    """Mean SSIM (Wang et al., IEEE TIP 2004) of two maps, each stretched to [0, 1] as it would be shown."""

    def blur(values_HW: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.GaussianBlur(values_HW, (11, 11), _WINDOW), np.float64)

    one_HW64, other_HW64 = _stretched(one_HW), _stretched(other_HW)
    mean_one, mean_other = blur(one_HW64), blur(other_HW64)
    variance_one = blur(one_HW64**2) - mean_one**2
    variance_other = blur(other_HW64**2) - mean_other**2
    covariance = blur(one_HW64 * other_HW64) - mean_one * mean_other
    likeness_HW = (2 * mean_one * mean_other + _K1**2) * (2 * covariance + _K2**2)
    likeness_HW /= (mean_one**2 + mean_other**2 + _K1**2) * (variance_one + variance_other + _K2**2)
    return float(likeness_HW.mean())


def _stretched(map_HW: Maps) -> NDArray[np.float64]:
    values_HW = map_HW.astype(np.float64) - map_HW.min()
    return np.asarray(values_HW / (values_HW.max() or 1.0), np.float64)
