"""`covariance shadow`: how far a second bundle agrees with the one in use, on live traffic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console

from dicom_node.logs import configure_logs
from worker.ledger import ShadowScore, open_ledger
from worker.settings import Settings

_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of one shadow with one model, over films."""

    shadow_sha256: str
    model_sha256: str
    films: int
    both_positive: int
    both_negative: int
    only_model: int
    """Positive by the model in use, negative by the shadow."""
    only_shadow: int
    agree: float
    """Share of films with the same decision."""
    kappa: float | None
    """Cohen's; None where chance alone would agree on all."""
    mean_difference: float
    """Mean absolute difference of the probabilities."""


def agreements(scores: Sequence[ShadowScore]) -> list[Agreement]:
    """Agreement for each pair of shadow and model."""
    pairs = dict.fromkeys((one.shadow_sha256, one.model_sha256) for one in scores)
    return [
        _agreement([one for one in scores if (one.shadow_sha256, one.model_sha256) == pair]) for pair in pairs
    ]


def _agreement(scores: Sequence[ShadowScore]) -> Agreement:
    count = len(scores)
    cells = [(one.positive, one.shadow_positive) for one in scores]
    both, neither = cells.count((True, True)), cells.count((False, False))
    only_model, only_shadow = cells.count((True, False)), cells.count((False, True))
    agree = (both + neither) / count
    model, shadow = (both + only_model) / count, (both + only_shadow) / count
    chance = model * shadow + (1 - model) * (1 - shadow)
    return Agreement(
        shadow_sha256=scores[0].shadow_sha256,
        model_sha256=scores[0].model_sha256,
        films=count,
        both_positive=both,
        both_negative=neither,
        only_model=only_model,
        only_shadow=only_shadow,
        agree=agree,
        kappa=None if chance == 1 else (agree - chance) / (1 - chance),
        mean_difference=sum(abs(one.probability - one.shadow_probability) for one in scores) / count,
    )


def print_shadow(settings: Settings, *, shadow: str, as_json: bool) -> None:
    """Print the agreement of each shadow, and where it disagrees."""
    configure_logs(level="ERROR")
    with open_ledger(settings, migrate=False) as ledger:
        scores = ledger.shadow_scores(shadow)
    found = agreements(scores)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))  # noqa: T201
        return
    console = Console(highlight=False, soft_wrap=True)
    for one in found:
        kappa = "-" if one.kappa is None else f"{one.kappa:.3f}"
        console.print(
            f"shadow {one.shadow_sha256[:12]} beside model {one.model_sha256[:12]}: {one.films} films, "
            f"{one.agree:.1%} the same decision, kappa {kappa}, probabilities {one.mean_difference:.3f} "
            f"apart; only the model positive {one.only_model}, only the shadow {one.only_shadow}"
        )
    apart = [one for one in scores if one.positive != one.shadow_positive]
    for each in apart[:_LISTED]:
        told = f"{each.probability:.3f} and {each.shadow_probability:.3f}"
        console.print(f"  {each.study_instance_uid}  {each.sop_instance_uid}  {told}")
    if len(apart) > _LISTED:
        console.print(f"  and {len(apart) - _LISTED} films more")
    if not found:
        console.print("No film was scored by a shadow: set worker.shadow_bundle, and restart the workers.")
