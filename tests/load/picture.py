"""Rate and memory over a whole run, as a picture: flat lines are what is promised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tests.load.watch import Look

WINDOW = 20.0
"""Seconds over which a rate is counted."""


def draw(looks: Sequence[Look], to: Path) -> None:
    """Studies committed a second and megabytes of each process, over the minutes of the run."""
    figure = Figure(figsize=(8, 5.2), layout="constrained", dpi=120)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.4))
    minutes = [look.seconds / 60 for look in looks]
    above.plot(minutes, _rates(looks), color="#1b6ca8")
    above.set_ylabel("studies/s committed")
    above.set_ylim(bottom=0)
    for name in looks[-1].megabytes:
        line = [look.megabytes.get(name, float("nan")) for look in looks]
        (drawn,) = below.plot(minutes, line)
        below.annotate(
            f" {name} {line[-1]:.0f}", (minutes[-1], line[-1]), color=drawn.get_color(), va="center"
        )
    below.set_ylabel("MB resident, children included")
    below.set_xlabel(f"minutes; {looks[-1].done:,} studies in all")
    below.set_ylim(bottom=0)
    below.margins(x=0)
    below.set_xlim(0, minutes[-1] * 1.14)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    figure.savefig(to)


def _rates(looks: Sequence[Look]) -> list[float]:
    rates, first = [], 0
    for look in looks:
        while look.seconds - looks[first].seconds > WINDOW:
            first += 1
        passed = look.seconds - looks[first].seconds
        rates.append((look.done - looks[first].done) / passed if passed >= WINDOW / 2 else float("nan"))
    return rates
