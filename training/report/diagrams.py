"""The report's diagrams: the baseline CNN (Appendix A) and the work-flow (Appendix C)."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import nn

from training.networks.baseline_cnn import BaselineCNN, parameters_of
from training.report.pictures import BLUE, GREEN, INK, LINE, ORANGE, PURPLE, QUIET, blank, sheet

_FILL = {BLUE: "#e3edf6", ORANGE: "#f8eadd", GREEN: "#e2f0e9", PURPLE: "#ebe5f3", QUIET: "#f1f3f6"}


def cnn_shapes(size: int = 640) -> list[tuple[str, tuple[int, ...]]]:
    """What each step of the baseline CNN gives, measured on a network without memory."""
    with torch.device("meta"):
        network = BaselineCNN(size)
        values = torch.empty(1, 3, size, size)
    shapes: list[tuple[str, tuple[int, ...]]] = [("Film", tuple(values.shape[1:]))]
    for step in (*network.features, *network.classifier):
        values = step(values)
        if not isinstance(step, nn.ReLU):
            shapes.append((type(step).__name__, tuple(values.shape[1:])))
    return shapes


def cnn_figure() -> Figure:
    """Appendix A."""
    names = {
        "Conv2d": ("Convolution\n3 x 3, ReLU", BLUE),
        "MaxPool2d": ("Max-pool\n2 x 2", GREEN),
        "Flatten": ("Flatten", QUIET),
        "Linear": ("Dense,\nReLU", ORANGE),
        "Film": ("Film", QUIET),
    }
    shapes = cnn_shapes()
    figure = sheet(9.6, 2.75)
    axes = figure.add_axes((0.01, 0.0, 0.98, 0.98))
    blank(axes)
    axes.set_xlim(0, len(shapes))
    axes.set_ylim(-0.34, 1.2)
    for place, (kind, shape) in enumerate(shapes):
        text, colour = names[kind]
        last = place == len(shapes) - 1
        height = 0.3 + 0.62 * (shape[-1] / shapes[0][1][-1]) ** 0.6 if len(shape) == 3 else 0.42
        height = 0.16 if last else height
        width = 0.3 + 0.3 * (shape[0] / 64 if len(shape) == 3 else 0)
        left, bottom = place + 0.5 - width / 2, 0.58 - height / 2
        axes.add_patch(
            Rectangle((left, bottom), width, height, facecolor=_FILL[colour], edgecolor=colour, linewidth=1.1)
        )
        size = " x ".join(f"{n:,}" for n in (*shape[1:], shape[0]))
        axes.text(place + 0.5, 0.03, "Dense,\nsigmoid" if last else text, ha="center", va="top", size=7.8)
        axes.text(place + 0.5, -0.22, size, ha="center", va="top", size=7.2, color=QUIET)
        if not last:
            _arrow(axes, (place + 0.5 + width / 2 + 0.03, 0.58), (place + 1.18, 0.58))
    with torch.device("meta"):
        count = parameters_of(BaselineCNN(640))
    axes.text(
        0.12,
        1.19,
        f"Baseline CNN: {count:,} parameters. Below each step, what it gives (height x width x channels).",
        va="top",
    )
    return figure


def workflow_figure(films: dict[str, tuple[int, int]], split: str) -> Figure:
    """Appendix C.

    Args:
        films: COVID and other films of each split.
        split: how it was drawn, `patient` or `image`.
    """
    figure = sheet(9.6, 3.3)
    axes = figure.add_axes((0.005, 0.01, 0.99, 0.98))
    blank(axes)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 34)
    _box(axes, (0.5, 12, 14.5, 10), "Films", "public catalogue,\ngrey, labelled", QUIET)
    _box(axes, (19, 12, 16, 10), "Split", f"by {split}, seeded", QUIET)
    _box(axes, (40, 24, 27, 8.5), "Baseline CNN, Models 1-4", "640 x 640, random weights", BLUE)
    _box(axes, (40, 12.75, 27, 8.5), "ResNet-18", "640 x 640, random weights", ORANGE)
    _box(axes, (40, 1.5, 27, 8.5), "DenseNet-121, Models 1-11", "320 x 320, frozen to 11 depths", GREEN)
    _box(axes, (72, 12, 12.5, 10), "Best epoch", "by accuracy\non dev", PURPLE)
    _box(axes, (89, 12, 10.5, 10), "Report", "metrics, maps", QUIET)
    _arrow(axes, (15.2, 17), (18.8, 17))
    for height in (28.2, 17, 5.8):
        _arrow(axes, (35.2, 17), (39.8, height))
        _arrow(axes, (67.2, height), (71.8, 17))
    _arrow(axes, (84.7, 17), (88.8, 17))
    counted = "\n".join(f"{name} {covid} / {other}" for name, (covid, other) in films.items())
    axes.text(27, 10.8, f"COVID / other:\n{counted}", ha="center", va="top", size=7.8, linespacing=1.3)
    return figure


def _box(axes: Axes, place: tuple[float, float, float, float], title: str, text: str, colour: str) -> None:
    left, bottom, width, height = place
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.9",
            facecolor=_FILL[colour],
            edgecolor=colour,
            linewidth=1.1,
        )
    )
    middle = left + width / 2
    axes.text(middle, bottom + height - 1.4, title, ha="center", va="top", weight="bold", size=8.5)
    axes.text(middle, bottom + 1.3, text, ha="center", va="bottom", size=7.8, color=INK, linespacing=1.25)


def _arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate(
        "", end, begin, arrowprops={"arrowstyle": "-|>", "color": QUIET, "linewidth": 0.9, "fc": LINE}
    )
