"""What a figure over all films hides: how the films were taken, of which source, and against which others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.evaluation import metrics
from training.evaluation.metrics import Estimate
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


def subgroups(  # noqa: PLR0917 (parallel columns of one table)
    name: str,
    rows: Sequence[Row],
    set_N: NDArray[np.bool_],
    labels_N: NDArray[np.bool_],
    scores_N: metrics.Scores,
    floor_N: metrics.Scores,
    patients_N: NDArray[np.str_],
) -> tuple[Subgroup, ...]:
    """AUROC by projection, by the source of the COVID films, and by what the others show.

    Of sources and of what is shown one class is a part and the other all of it: nearly every film without
    COVID comes from one hospital. Parts with fewer than `FEWEST` films of a class are left out, and those
    that are the whole.
    """
    view_N = np.array([{True: "AP", False: "PA", None: "unknown"}[is_ap(row)] for row in rows])
    origin_N, label_N = (np.array([getattr(row, column) for row in rows]) for column in ("origin", "label"))
    parts: dict[str, NDArray[np.bool_]] = {f"projection {view}": view_N == view for view in np.unique(view_N)}
    for origin in np.unique(origin_N[labels_N]):
        parts[f"COVID films of {origin}, all others"] = ~labels_N | (origin_N == origin)
    for label in np.unique(label_N[~labels_N]):
        parts[f"all COVID films, others: {label}"] = labels_N | (label_N == label)
    found = []
    for group, part_N in parts.items():
        chosen_N = set_N & part_N
        labels = labels_N[chosen_N]
        if min(labels.sum(), (~labels).sum()) < FEWEST or len(labels) == set_N.sum():
            continue
        area, floor_area = (
            metrics.bootstrap(metrics.auroc, labels, values_N[chosen_N], patients_N[chosen_N])
            for values_N in (scores_N, floor_N)
        )
        found.append(
            Subgroup(
                rows=name,
                group=group,
                films=len(labels),
                positive=int(labels.sum()),
                auroc=area,
                floor_auroc=floor_area,
            )
        )
    return tuple(found)


def within_views(  # noqa: PLR0917 (parallel columns of one table)
    name: str,
    rows: Sequence[Row],
    set_N: NDArray[np.bool_],
    labels_N: NDArray[np.bool_],
    scores_N: metrics.Scores,
    patients_N: NDArray[np.str_],
) -> ViewFigures | None:
    """None where no two films of both classes share a projection."""
    known_N = set_N & np.array([is_ap(row) is not None for row in rows])
    labels, patients = labels_N[known_N], patients_N[known_N]
    ap = np.array([bool(is_ap(row)) for row in rows])[known_N]
    if not any(0 < labels[ap == view].sum() < (ap == view).sum() for view in (True, False)):
        return None
    return ViewFigures(
        rows=name,
        films=len(labels),
        positive=int(labels.sum()),
        ap_of_positive=float(ap[labels].mean()),
        ap_of_negative=float(ap[~labels].mean()),
        view_auroc=metrics.bootstrap(metrics.auroc, labels, ap.astype(float), patients),
        within_auroc=metrics.bootstrap_within(labels, scores_N[known_N], ap.astype(str), patients),
    )
