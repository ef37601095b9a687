"""The floor: what eight statistics of a film, blind to the lungs, already give away.

A network is to be read against it. Where the floor is high the rows are confounded, and a high figure
of the network proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from training.films.datasets import Row, read_film

STATISTICS = (
    "aspect",
    "size",
    "mean",
    "standard deviation",
    "share of black",
    "share of white",
    "mean of the upper and lower border",
    "mean of the left and right border",
)
_BLACK, _WHITE = 8, 247
_BORDER = 0.05


def statistics_of(film_HW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The statistics of one film before the recipe, `(8,)`, in the order of `STATISTICS`."""
    height, width = film_HW.shape
    rows, columns = max(round(height * _BORDER), 1), max(round(width * _BORDER), 1)
    return np.array(
        [
            width / height,
            np.sqrt(width * height),
            film_HW.mean(),
            film_HW.std(),
            (film_HW <= _BLACK).mean(),
            (film_HW >= _WHITE).mean(),
            (film_HW[:rows].mean() + film_HW[-rows:].mean()) / 2,
            (film_HW[:, :columns].mean() + film_HW[:, -columns:].mean()) / 2,
        ]
    )


def statistics(folder: Path, rows: Sequence[Row]) -> NDArray[np.float64]:
    """The statistics of every row, `(N, 8)`."""
    return np.stack([statistics_of(read_film(folder, row)) for row in rows])


def fit_floor(
    statistics_N8: NDArray[np.float64], labels_N: NDArray[np.bool_], *, seed: int = 0
) -> RandomForestClassifier:
    """A random forest on the statistics of the rows that the network learns from."""
    forest = RandomForestClassifier(
        n_estimators=500, min_samples_leaf=2, class_weight="balanced", random_state=seed
    )
    return forest.fit(statistics_N8, labels_N)
