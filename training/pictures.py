"""How the report's pictures look, and how they become small files that are the same every time."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

LARGEST = 60_000
"""Bytes of a picture; with fewer colours it becomes smaller."""
DOTS = 110
INK, QUIET, LINE = "#1f2933", "#5f6b7a", "#c9d1da"
BLUE, ORANGE, GREEN, PURPLE, RED = "#2b6ca3", "#c8702a", "#3f8f68", "#7a5fa0", "#a83f4b"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "text.color": INK,
    "legend.frameon": False,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
}


def sheet(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    return Figure(figsize=(width, height), dpi=DOTS, facecolor="white")


def blank(axes: Axes) -> None:
    """An axis that only holds a picture or words."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Draw a figure and write it as PNG with as many colours as `LARGEST` allows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    for colours in (256, 192, 128, 96, 64, 48, 32, 24, 16):
        content = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(content, format="PNG", optimize=True)
        if content.tell() < LARGEST:
            break
    path.write_bytes(content.getvalue())


def style() -> None:
    """Set the look of all figures."""
    mpl.rcParams.update(mpl.rcParamsDefault)
    mpl.use("agg")
    mpl.rcParams.update(STYLE)
