"""Films with their class, the two scores that are compared, and whose films they are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from training.evaluation import metrics
from training.evaluation.metrics import Estimate, Labels, Scores


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Columns of one table, `(N,)` each."""

    labels_N: Labels
    scores_N: Scores
    """The network's probabilities."""
    floor_N: Scores
    """The trivial-statistics forest's."""
    patients_N: NDArray[np.str_]

    def at(self, chosen_N: NDArray[np.bool_]) -> Self:
        """Some of the films."""
        return type(self)(**{one.name: getattr(self, one.name)[chosen_N] for one in fields(self)})

    @property
    def positive(self) -> int:
        """How many films show COVID-19."""
        return int(self.labels_N.sum())

    def estimate(self, metric: metrics.Metric, values_N: Scores) -> Estimate:
        """A metric of some values of these films, with its interval over patients."""
        return metrics.bootstrap(metric, self.labels_N, values_N, self.patients_N)

    @property
    def auroc(self) -> Estimate:
        """The network's."""
        return self.estimate(metrics.auroc, self.scores_N)

    @property
    def floor_auroc(self) -> Estimate:
        """The forest's."""
        return self.estimate(metrics.auroc, self.floor_N)
