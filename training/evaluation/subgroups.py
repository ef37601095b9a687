"""What a figure over all films hides: how the films were taken, of which source, and against which others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.evaluation import metrics
from training.evaluation.metrics import Estimate
from training.evaluation.scored import Scored
from training.films.datasets import Row
from training.tasks import is_ap

FEWEST = 10
"""Films of each class below which a subgroup has no figure: its interval would say nothing."""


class ViewFigures(BaseModel):
    """What the projection (AP or PA) gives away on one set of rows, and what is left within one."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    rows: str
    films: int
    """Of which the projection is known."""
    positive: int
    ap_of_positive: float
    """Share of AP among the COVID films."""
    ap_of_negative: float
    view_auroc: Estimate
    """Of calling AP films positive, without looking at any."""
    within_auroc: Estimate
    """The network's, over pairs of films of the same projection."""


class Subgroup(BaseModel):
    """The network on a part of a set of rows."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    rows: str
    group: str
    """Which films are left in, in words."""
    films: int
    positive: int
    auroc: Estimate
    floor_auroc: Estimate


def subgroups(
    name: str, rows: Sequence[Row], set_N: NDArray[np.bool_], scored: Scored
) -> tuple[Subgroup, ...]:
    """AUROC by projection, by the source of the COVID films, and by what the others show.

    Of sources and of what is shown one class is a part and the other all of it: nearly every film without
    COVID comes from one hospital. Parts with fewer than `FEWEST` films of a class are left out, and those
    that are the whole.
    """
    labels_N = scored.labels_N
    view_N = np.array([{True: "AP", False: "PA", None: "unknown"}[is_ap(row)] for row in rows])
    origin_N, label_N = (np.array([getattr(row, column) for row in rows]) for column in ("origin", "label"))
    parts: dict[str, NDArray[np.bool_]] = {f"projection {view}": view_N == view for view in np.unique(view_N)}
    for origin in np.unique(origin_N[labels_N]):
        parts[f"COVID films of {origin}, all others"] = ~labels_N | (origin_N == origin)
    for label in np.unique(label_N[~labels_N]):
        parts[f"all COVID films, others: {label}"] = labels_N | (label_N == label)
    found = []
    for group, part_N in parts.items():
        part = scored.at(set_N & part_N)
        films, positive = len(part.labels_N), part.positive
        if min(positive, films - positive) >= FEWEST and films < set_N.sum():
            found.append(
                Subgroup(
                    rows=name,
                    group=group,
                    films=films,
                    positive=positive,
                    auroc=part.auroc,
                    floor_auroc=part.floor_auroc,
                )
            )
    return tuple(found)


def within_views(
    name: str, rows: Sequence[Row], set_N: NDArray[np.bool_], scored: Scored
) -> ViewFigures | None:
    """None where no two films of both classes share a projection."""
    known_N = set_N & np.array([is_ap(row) is not None for row in rows])
    known = scored.at(known_N)
    labels, ap = known.labels_N, np.array([bool(is_ap(row)) for row in rows])[known_N]
    if not any(0 < labels[ap == view].sum() < (ap == view).sum() for view in (True, False)):
        return None
    return ViewFigures(
        rows=name,
        films=len(labels),
        positive=known.positive,
        ap_of_positive=float(ap[labels].mean()),
        ap_of_negative=float(ap[~labels].mean()),
        view_auroc=known.estimate(metrics.auroc, ap.astype(float)),
        within_auroc=metrics.bootstrap_within(labels, known.scores_N, ap.astype(str), known.patients_N),
    )
