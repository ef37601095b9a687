"""The report's charts: Figure 2, the confusion matrices of Appendix B, and the curves of learning."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.report.classification import FLOOR, Confusion, Measurement, confusion
from training.report.finished import Finished
from training.report.pictures import BLUE, GREEN, INK, LINE, ORANGE, PURPLE, QUIET, RED, blank, sheet

SET_TITLES = {"train": "Train", "dev": "Validation (dev)", "test": "Test", "srcbal": "Source-balanced"}
_LINES = (
    ("all", "auroc", "AUROC", INK, "D"),
    ("all", "accuracy", "Accuracy", BLUE, "o"),
    ("covid", "precision", "Precision", ORANGE, "^"),
    ("covid", "recall", "Recall", GREEN, "s"),
    ("covid", "f1", "F1", PURPLE, "v"),
)
_COLUMNS = 4


def trainable_figure(done: Sequence[Finished], measurements: Sequence[Measurement]) -> Figure | None:
    """Every metric against the number of trainable tensors, and the floor's AUROC where it was measured.

    None before two DenseNets are done.
    """
    tensors = {r.system.name: r.system.trainable for r in done if r.system.network == "densenet-121"}
    if len(tensors) < 2:
        return None
    found = {(m.system, m.split, m.label, m.metric): m for m in measurements}
    figure = sheet(9.6, 3.6)
    panels = figure.subplots(1, len(SET_TITLES), sharey=True)
    lowest = 1.0
    for axes, (split, title) in zip(panels, SET_TITLES.items(), strict=True):
        for label, metric, name, colour, marker in _LINES:
            points = [
                (count, m)
                for system, count in tensors.items()
                if (m := found.get((system, split, label, metric)))
            ]
            counts, values = [p[0] for p in points], [100 * p[1].value for p in points]
            if metric == "auroc":
                low, high = ([100 * (getattr(p[1], end) or 0) for p in points] for end in ("low", "high"))
                axes.fill_between(counts, low, high, color=LINE, alpha=0.5, linewidth=0)
                lowest = min([lowest, *(value / 100 for value in low)])
            axes.plot(counts, values, color=colour, marker=marker, markersize=3.6, linewidth=1.2, label=name)
            lowest = min([lowest, *(value / 100 for value in values)])
        # On train the floor has seen what it is asked.
        if split != "train" and (floor := found.get((FLOOR, split, "all", "auroc"))):
            lowest = min(lowest, floor.value)
            axes.axhline(
                100 * floor.value, color=RED, linestyle="--", linewidth=1.2, label="AUROC of the floor"
            )
        axes.set_title(title)
        axes.set_xlabel("Trainable tensors of 362")
        axes.set_xticks([c for c in tensors.values() if c not in (10, 30)])
        axes.set_xticks(list(tensors.values()), minor=True)
        axes.tick_params(axis="x", labelrotation=90, labelsize=7.5)
        axes.grid(axis="y")
    panels[0].set_ylim(math.floor(lowest * 10) * 10, 101.5)
    panels[0].set_ylabel("Percent (COVID-19 is positive)")
    told = max((axes.get_legend_handles_labels() for axes in panels), key=lambda found: len(found[1]))
    figure.legend(*told, loc="upper center", ncols=6)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    return figure


def confusion_figure(done: Sequence[Finished], split: str = "test") -> Figure:
    """A matrix of counts for every run."""
    rows = math.ceil(len(done) / _COLUMNS)
    figure = sheet(9.6, 0.2 + 1.75 * rows)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place < len(done):
            _matrix(axes, done[place].label, confusion(done[place].predictions, split))
        else:
            axes.set_axis_off()
    figure.tight_layout(h_pad=1.2, w_pad=0.6)
    return figure


def _matrix(axes: Axes, title: str, counts: Confusion) -> None:
    matrix = np.array(
        [
            [counts.true_positive, counts.false_negative],
            [counts.false_positive, counts.true_negative],
        ]
    )
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    blank(axes)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1.6, aspect=0.55)
    for row in range(2):
        for column in range(2):
            weight = "bold" if row == column else "normal"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", size=12, weight=weight)
    axes.set_xticks([0, 1], ["called\nCOVID", "called\nother"], size=7.5)
    axes.set_yticks([0, 1], ["COVID", "other"], size=7.5)
    axes.tick_params(length=0)
    axes.set_title(title)


def curves_figure(done: Sequence[Finished]) -> Figure:
    """Loss and accuracy on dev of every epoch of every run, and the epoch that was kept."""
    rows = math.ceil(len(done) / _COLUMNS)
    figure = sheet(9.6, 0.4 + 1.75 * rows)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place < len(done):
            _curves(axes, done[place])
        else:
            axes.set_axis_off()
    figure.tight_layout(h_pad=1.0, w_pad=0.8)
    return figure


def _curves(axes: Axes, run: Finished) -> None:
    epochs = [epoch.epoch for epoch in run.log]
    axes.plot(epochs, [epoch.loss for epoch in run.log], color=RED, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_title(run.label)
    axes.set_xlabel("Epoch", size=7.5)
    axes.set_ylabel("Loss", color=RED, size=7.5)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    right = axes.twinx()
    right.plot(epochs, [100 * epoch.dev_accuracy for epoch in run.log], color=BLUE, linewidth=1.2)
    right.plot(
        run.best.epoch, 100 * run.best.dev_accuracy, "o", color=BLUE, markersize=4, markerfacecolor="white"
    )
    right.set_ylim(40, 101)
    right.set_ylabel("Accuracy, %", color=BLUE, size=7.5)
    right.tick_params(labelsize=7)
    right.spines["right"].set_visible(True)
    right.spines["right"].set_color(QUIET)
