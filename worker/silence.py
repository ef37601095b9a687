"""Silence is an alarm: a sender that sends less than it does at this time of the week.

The median of the same hours in earlier weeks is what is usual: one week with a holiday or a campaign
does not move it. Pure; the counts come from the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

WINDOWS_HOURS = (1, 4, 12, 24)
"""A sender of ten studies an hour is missed after one, a sender of one a night only after longer."""
WEEKS = 8
"""How many earlier weeks are looked at."""
SILENT_BELOW = 0.001
"""A sender is silent when so few would come less often than this by chance."""
FEWEST_WEEKS = 3
"""With fewer nothing is usual yet."""


@dataclass(frozen=True, kw_only=True)
class Silence:
    """One sender now, over the window that speaks most for silence."""

    hours: int
    observed: int
    """Studies that came within these hours."""
    usual: float
    """Median of the same hours in earlier weeks."""
    probability: float
    """That so few come by chance, at most, were all as usual; 1 where nothing is missed."""


def lower_tail(observed: int, mean: float) -> float:
    """P(X <= observed) of a Poisson variable."""
    if mean <= 0:
        return 1.0
    terms = (math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(observed + 1))
    return min(math.fsum(terms), 1.0)


def judge(counts: Mapping[int, Sequence[int]]) -> Silence | None:
    """Compare what came with what came in earlier weeks.

    Args:
        counts: by hours of the window: the studies within them until now, and then a week ago, two weeks
            ago and so on.

    Returns:
        The window that speaks most for silence, or None while there are fewer than `FEWEST_WEEKS` weeks.
    """
    found = []
    for hours, (observed, *earlier) in sorted(counts.items()):
        if len(earlier) < FEWEST_WEEKS:
            continue
        # Hospitals vary more than Poisson: what a quarter of the weeks fell short of as well is no silence.
        quartile = sorted(earlier)[len(earlier) // 4]
        usual = float(median(earlier))
        chance = 1.0 if observed >= quartile else lower_tail(observed, usual)
        found.append(Silence(hours=hours, observed=observed, usual=usual, probability=chance))
    if not found:
        return None
    worst = min(found, key=lambda one: one.probability)
    # Looked at several windows, one of them is rare more often.
    chance = min(worst.probability * len(found), 1.0)
    return Silence(hours=worst.hours, observed=worst.observed, usual=worst.usual, probability=chance)
