"""Whether films have become others than those that a model first saw here: population stability. Pure.

The reference is what the same model made of its first studies at this site. PSI is the sum over bins of
(p - q) ln(p / q); by custom under 0.1 is as before, over 0.25 is another population.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

FEWEST = 200
"""Images on either side; with fewer, chance alone gives a PSI that looks like drift."""
BINS = 10
_SMOOTHING = 0.5

By = Literal["all", "sender", "manufacturer", "view"]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One image and what became of it."""

    sender: str
    manufacturer: str
    view: str
    probability: float | None
    """None when it was not scored."""
    reason: str | None
    """Why it was not."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """One group of images, now against the reference."""

    by: By
    group: str
    images: int
    score_psi: float | None
    """None while there are too few scores on one side."""
    abstention_psi: float | None
    """Over scored and the reasons why not; None while there are too few images on one side."""


def psi(reference: Mapping[Any, int], current: Mapping[Any, int]) -> float:
    """Population stability index of two sets of counts over the same bins."""
    bins = {*reference, *current}
    total = _SMOOTHING * len(bins)
    before, after = sum(reference.values()) + total, sum(current.values()) + total
    shares = (
        ((current.get(one, 0) + _SMOOTHING) / after, (reference.get(one, 0) + _SMOOTHING) / before)
        for one in bins
    )
    return math.fsum((p - q) * math.log(p / q) for p, q in shares)


def score_psi(reference: Sequence[float], current: Sequence[float]) -> float:
    """PSI over the deciles of the reference."""
    ordered = sorted(reference)
    edges = [ordered[len(ordered) * step // BINS] for step in range(1, BINS)]
    counts = [Counter(bisect_right(edges, value) for value in values) for values in (reference, current)]
    return psi(*({bin_: count.get(bin_, 0) for bin_ in range(BINS)} for count in counts))


def drift(reference: Sequence[Seen], current: Sequence[Seen], *, fewest: int = FEWEST) -> list[Drift]:
    """Compare all images, and those of each sender, manufacturer and view."""
    keys: Mapping[By, Callable[[Seen], str]] = {
        "all": lambda _: "all",
        "sender": lambda one: one.sender,
        "manufacturer": lambda one: one.manufacturer,
        "view": lambda one: one.view,
    }
    found = []
    for by, key in keys.items():
        before, now = _grouped(reference, key), _grouped(current, key)
        found += [_compare(by, group, before.get(group, []), now[group], fewest) for group in sorted(now)]
    return found


def _grouped(images: Iterable[Seen], key: Callable[[Seen], str]) -> dict[str, list[Seen]]:
    groups: dict[str, list[Seen]] = {}
    for one in images:
        groups.setdefault(key(one), []).append(one)
    return groups


def _compare(by: By, group: str, reference: list[Seen], current: list[Seen], fewest: int) -> Drift:
    before = [one.probability for one in reference if one.probability is not None]
    now = [one.probability for one in current if one.probability is not None]
    ends = [Counter(one.reason or "scored" for one in images) for images in (reference, current)]
    return Drift(
        by=by,
        group=group,
        images=len(current),
        score_psi=score_psi(before, now) if min(len(before), len(now)) >= fewest else None,
        abstention_psi=psi(*ends) if min(len(reference), len(current)) >= fewest else None,
    )
