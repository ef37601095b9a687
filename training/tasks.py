"""What a film can teach besides COVID or not: findings, lung opacity, and how the film was taken.

COVID films say nothing of findings and NIH films nothing of COVID variants, so a target may be unknown;
an unknown target adds nothing to the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.films.datasets import Row
from training.networks.densenet import DenseNet121

NIH = "nih14"
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
"""The labels of ChestX-ray14 (Wang et al., CVPR 2017)."""
OPACITIES = frozenset({"Consolidation", "Edema", "Infiltration", "Pneumonia"})
TASKS = ("covid", "opacity", "view", *FINDINGS)
"""Columns of the targets: COVID or not; any of `OPACITIES`; AP (1) or PA (0); each finding."""


def opacity_of(row: Row) -> bool | None:
    """Whether an airspace opacity was read on a film; None where nobody said."""
    return bool(OPACITIES & row.findings) if row.origin == NIH else None


def is_ap(row: Row) -> bool | None:
    """Whether the film was taken from the front, as at the bedside; None where nobody said."""
    return row.view.startswith("AP") if row.view[:2] in {"AP", "PA"} else None


def targets(rows: Sequence[Row]) -> NDArray[np.float32]:
    """Targets `(N, T)` in the order of `TASKS`: 0, 1, or NaN where unknown."""
    known = [(row.positive, opacity_of(row), is_ap(row), *_findings(row)) for row in rows]
    return np.array(known, np.float32)


def _findings(row: Row) -> list[bool | None]:
    return [finding in row.findings if row.origin == NIH else None for finding in FINDINGS]


class MultiTask(nn.Module):
    """DenseNet-121 with one more logit for each other task; only the network itself is served."""

    def __init__(self, network: DenseNet121) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.Linear(1024, len(TASKS) - 1)

    def forward(self, pixels_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, T)` and activation maps `(B, H / 32, W / 32)` of films `(B, 1, H, W)` in [0, 1]."""
        last_BDhw = self.network.last(pixels_B1HW)
        with torch.autocast(last_BDhw.device.type, enabled=False):  # bfloat16 logits would tie
            pooled_BD = last_BDhw.mean(dim=(2, 3))
            logits_BT = torch.cat([self.network.head(pooled_BD), self.heads(pooled_BD)], dim=1)
            return logits_BT, self.network.cams(last_BDhw)


class TaskLoss(nn.Module):
    """Weighted sum of each task's mean cross-entropy over the films that it is known of."""

    weights_T: Tensor
    positive_weights_T: Tensor

    def __init__(self, weights: Sequence[float], positive_weight: float) -> None:
        """Build it.

        Args:
            weights: of covid, opacity, view, and all findings together.
            positive_weight: of a COVID film among the others.
        """
        super().__init__()
        covid, opacity, view, findings = weights
        share = [findings / len(FINDINGS)] * len(FINDINGS)
        self.register_buffer("weights_T", torch.tensor([covid, opacity, view, *share]))
        self.register_buffer("positive_weights_T", torch.tensor([positive_weight] + [1.0] * (len(TASKS) - 1)))

    def forward(self, logits_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The loss, a number."""
        known_BT = ~targets_BT.isnan()
        losses_BT = nn.functional.binary_cross_entropy_with_logits(
            logits_BT, targets_BT.nan_to_num(), pos_weight=self.positive_weights_T, reduction="none"
        )
        mean_T = (losses_BT * known_BT).sum(0) / known_BT.sum(0).clamp(min=1)
        return (mean_T * self.weights_T).sum()


def strata(rows: Sequence[Row], opacity_share: float | None = None) -> NDArray[np.float64]:
    """Chance `(N,)` of each film to be drawn, so that source, view and opacity tell less about the class.

    Both classes get half. Within a class every stratum gets the square root of its size: COVID films by
    origin, the others by opacity and view, since COVID films are mostly AP and show opacities.

    Args:
        rows: the films that are learnt from.
        opacity_share: of the films without COVID those that show an opacity; by their number if None.
    """
    keys = [
        (True, row.origin) if row.positive else (False, f"{row.origin} {opacity_of(row)} {is_ap(row)}")
        for row in rows
    ]
    _, index_N, counts_S = np.unique([f"{p:d}{k}" for p, k in keys], return_inverse=True, return_counts=True)
    chances_N = np.asarray(counts_S[index_N] ** -0.5, np.float64)
    positive_N = np.array([row.positive for row in rows])
    if opacity_share is not None:
        opaque_N = np.array([opacity_of(row) is True for row in rows]) & ~positive_N
        for part_N, share in ((opaque_N, opacity_share), (~opaque_N & ~positive_N, 1 - opacity_share)):
            chances_N[part_N] *= share / max(chances_N[part_N].sum(), np.finfo(float).tiny)
    for class_N in (positive_N, ~positive_N):
        chances_N[class_N] /= 2 * chances_N[class_N].sum()
    return chances_N
