"""How the report's pictures look, and how they become small files that are the same every time."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

LARGEST = 60_000
"""Bytes of a picture; with fewer colours it becomes smaller."""
DOTS = 110
INK, QUIET, LINE = "#1f2933", "#5f6b7a", "#c9d1da"
BLUE, ORANGE, GREEN, PURPLE, RED = "#2b6ca3", "#c8702a", "#3f8f68", "#7a5fa0", "#a83f4b"


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
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    picture = Image.open(drawn).convert("RGB")
    for colours in (256, 192, 128, 96, 64, 48, 32, 24, 16):
        content = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(content, format="PNG", optimize=True)
        if content.tell() < LARGEST:
            break
    path.write_bytes(content.getvalue())


def style() -> None:
    """Set the look of all figures."""
    mpl.rcdefaults()
    mpl.rc("font", family="DejaVu Sans", size=8.5)
    mpl.rc("axes", titlesize=9.5, edgecolor=QUIET, labelcolor=INK, linewidth=0.7)
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("text", color=INK)
    mpl.rc("xtick", color=INK)
    mpl.rc("ytick", color=INK)
    mpl.rc("legend", frameon=False)
    mpl.rc("grid", color=LINE, linewidth=0.5)
