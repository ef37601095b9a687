"""Pictures of what the networks look at: Figures 3-4 and Appendix E of the report.

They show phantoms unless real films are asked for, because the repository may hold no patient's film.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from scipy.special import expit
from torch import nn

from training.films import datasets
from training.films.datasets import Row
from training.report import networks
from training.report.finished import Finished
from training.report.pictures import blank, sheet
from training.report.saliency import Explanation, explain
from training.sweep.runs import Predictions
from worker.phantom import radiograph

Film = NDArray[np.uint8]
_PHANTOMS = ((11, 1.0), (12, 0.8), (13, 0.0), (14, 0.0))
"""Seed and opacity."""
_CHANNELS = 16
_SIDE = 320
"""Of a film as it is drawn, whatever the network takes."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A film that is shown under the maps."""

    caption: str
    film_HW: Film


@cache
def phantom_films() -> tuple[Shown, ...]:
    """Two phantoms with opacities as of COVID-19, and two that are clear."""
    return tuple(
        Shown(
            caption=f"Phantom {number}, {'opacities' if opacity else 'clear'}",
            film_HW=(radiograph(seed, rows=1250, columns=1024, opacity=opacity) >> 4).astype(np.uint8),
        )
        for number, (seed, opacity) in enumerate(_PHANTOMS, 1)
    )


def test_films(folder: Path, rows: Sequence[Row], predictions: Predictions) -> tuple[Shown, ...]:
    """The first two COVID films and the first two others of `test`, not chosen by how well they go.

    Raises:
        ConfigurationError: a film is missing from the catalogue or unreadable.
    """
    known = {row.file: row for row in rows}
    shown = []
    for positive, name in ((True, "COVID"), (False, "other")):
        chosen = np.flatnonzero((predictions.splits_N == "test") & (predictions.labels_N == positive))[:2]
        for number, place in enumerate(chosen, 1):
            film_HW = datasets.read_film(folder, known[predictions.files[place]])
            shown.append(Shown(caption=f"Test film, {name} {number}", film_HW=film_HW))
    return tuple(shown)


def pictured(usable: Sequence[Finished]) -> tuple[Finished, ...]:
    """The runs whose maps are shown: the last of each other network, and the two DenseNets that learn most
    (Models 10 and 11, which the report compares)."""
    chosen: list[Finished] = []
    for network, count in (("baseline-cnn", 1), ("resnet-18", 1), ("densenet-121", 2)):
        chosen += [run for run in usable if run.system.network == network][-count:]
    return tuple(chosen)


def explanations(network: nn.Module, films: Sequence[Shown], size: int) -> tuple[Explanation, ...]:
    """Explain films, squared as the report's networks take them."""
    return tuple(explain(network, datasets.plain(shown.film_HW, size)) for shown in films)


def saliency_figure(shown: Shown, explanation: Explanation) -> Figure:
    """Film, saliency and overlay, as in the report."""
    figure, (first, second, third) = _panels(3)
    film_HW = datasets.plain(shown.film_HW, _SIDE)
    _show_film(first, film_HW, f"{shown.caption}\np(COVID) = {expit(explanation.logit):.2f}")
    saliency_HW = explanation.saliency_HW / max(float(explanation.saliency_HW.max()), 1e-12)
    heat = second.imshow(saliency_HW, cmap="hot", vmin=0, vmax=1)
    second.set_title("Saliency\n(the report's way)", size=8.5)
    _bar(second, heat, "share of its maximum", [0, 1])
    _overlay(third, film_HW, saliency_HW, "hot", (0, 1))
    return figure


def evidence_figure(shown: Shown, evidence_hw: NDArray[np.float32], full_scale: float) -> Figure:
    """The exact class activation map, and its overlay.

    Args:
        shown: the film.
        evidence_hw: its map.
        full_scale: log-odds of the strongest colour, the same for all films of a network.
    """
    figure, (first, second) = _panels(2)
    evidence_HW = cv2.resize(evidence_hw, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
    limits = (-full_scale, full_scale)
    image = first.imshow(evidence_HW, cmap="RdBu_r", vmin=limits[0], vmax=limits[1])
    first.set_title("Class activation\n(exact)", size=8.5)
    _bar(first, image, "log-odds of COVID", list(limits))
    _overlay(second, datasets.plain(shown.film_HW, _SIDE), evidence_HW, "RdBu_r", limits)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = sheet(1.49 * count, 2.08)
    panels = list(figure.subplots(1, count).flat)
    for axes in panels:
        blank(axes)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.82, bottom=0.15, wspace=0.06)
    return figure, panels


def full_scale_of(found: Sequence[Explanation]) -> float:
    """The strongest evidence in any of a network's films, rounded up to two digits."""
    strongest = max(
        (float(np.abs(e.evidence_hw).max()) for e in found if e.evidence_hw is not None), default=1
    )
    step = 10.0 ** (np.floor(np.log10(max(strongest, 1e-6))) - 1)
    return float(np.ceil(strongest / step) * step)


def activation_figure(network: nn.Module, shown: Shown, size: int) -> Figure:
    """The first 16 channels behind every child of `features`, each in a grid of 4 x 4."""
    if not networks.has_map(network):
        raise ValueError("only DenseNet-121 has the layers that the report shows")
    pixels = torch.from_numpy(datasets.plain(shown.film_HW, size).copy())[None, None].float() / 255
    found = networks.activations(network, pixels)
    figure = sheet(5.6, 4.9)
    panels = figure.subplots(3, 4).flat
    for axes, (name, values) in zip(panels, found.items(), strict=True):
        maps = values[0, :_CHANNELS].numpy()
        axes.imshow(_grid(maps), cmap="gray", interpolation="nearest", vmin=0, vmax=1)
        axes.set_title(f"{name}\n{values.shape[1]} x {values.shape[2]} x {values.shape[3]}", size=7)
        blank(axes)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.01, wspace=0.06, hspace=0.25)
    return figure


def _grid(maps_CHW: NDArray[np.float32], side: int = 40) -> NDArray[np.float32]:
    """Maps in rows of four, each from its darkest to its brightest, with white lines between."""
    tiles = []
    for map_HW in maps_CHW:
        low, high = float(map_HW.min()), float(map_HW.max())
        scaled = (map_HW - low) / max(high - low, 1e-12)
        shrinks = scaled.shape[0] > side
        way = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
        tiles.append(np.pad(cv2.resize(scaled, (side, side), interpolation=way), 1, constant_values=1))
    return np.asarray(np.block([tiles[i : i + 4] for i in range(0, len(tiles), 4)]), np.float32)


def _show_film(axes: Axes, film_HW: Film, title: str) -> None:
    axes.imshow(film_HW, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, size=8.5)


def _overlay(
    axes: Axes, film_HW: Film, map_HW: NDArray[np.float32], colours: str, limits: tuple[float, float]
) -> None:
    axes.imshow(film_HW, cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0))
    axes.imshow(map_HW, cmap=colours, vmin=limits[0], vmax=limits[1], alpha=0.5, extent=(0, 1, 1, 0))
    axes.set_title("Overlay", size=8.5)


def _bar(axes: Axes, image: AxesImage, text: str, ticks: list[float]) -> None:
    inset = axes.inset_axes((0.1, -0.09, 0.8, 0.045))
    bar = axes.figure.colorbar(image, cax=inset, orientation="horizontal", ticks=ticks)
    bar.ax.tick_params(labelsize=6.5, length=2, pad=1.5)
    bar.outline.set_linewidth(0.4)
    bar.set_label(text, size=6.5, labelpad=-6)
