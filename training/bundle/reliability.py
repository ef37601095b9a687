"""The reliability diagram: how many of the films with a probability have COVID-19."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from training.evaluation.calibration import Calibration
from training.files import write_whole

RELIABILITY = "reliability.svg"


def draw_reliability(calibrations: Sequence[Calibration], path: Path) -> None:
    """Draw the served probabilities of every set of rows as an SVG; nothing where none was measured."""
    if not calibrations:
        path.unlink(missing_ok=True)
        return
    # Text stays text and ids are the same every time: a small file that changes with its figures only.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "reliability", "font.size": 9}):
        figure = Figure(figsize=(4, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot((0, 1), (0, 1), "--", color="0.6", linewidth=1, label="perfect")
        for calibration, marker in zip(calibrations, "os^", strict=False):
            axes.plot(
                [part.probability for part in calibration.bins],
                [part.covid for part in calibration.bins],
                f"-{marker}",
                linewidth=1,
                markersize=4,
                label=calibration.rows,
            )
        axes.set(
            xlim=(0, 1),
            ylim=(0, 1),
            aspect="equal",
            xlabel="probability of COVID-19 (mean of a tenth of the films)",
            ylabel="share of films with COVID-19",
        )
        axes.legend(loc="upper left", frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_whole(path, content.getvalue())
