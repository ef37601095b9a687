"""Sections of the model card that are there when they were measured. Each ends with an empty line."""

from __future__ import annotations

from collections.abc import Sequence

from training.bundle.candidates import Candidate
from training.bundle.markdown import table
from training.bundle.reliability import RELIABILITY
from training.evaluation.calibration import PREVALENCES, PredictiveValue
from training.evaluation.evaluate import Evaluation
from training.evaluation.metrics import Estimate
from training.evaluation.subgroups import FEWEST


def who_must_not_rely(evaluation: Evaluation) -> str:
    """For whom the model is not."""
    rare = [value for value in evaluation.predictive_values if value.prevalence == min(PREVALENCES)]
    most = max((value.ppv.high for value in rare if value.ppv), default=None)
    worth = (
        ""
        if most is None
        else f" (at {min(PREVALENCES):.0%}, no interval of the share of positives that are right\n"
        f"  reaches above {most:.0%})"
    )
    return f"""## Who must not rely on it
Nobody may rely on a score for a decision about a patient. In particular not:
- whoever treats, triages, isolates or sends home: a negative result rules nothing out;
- whoever screens a population in which COVID-19 is rare{worth};
- a hospital whose films it has not been measured on: the figures of another hospital do not carry over;
- whoever has films of children, lateral films, or films straight from a modality: it was tested on none;
- whoever reads the heatmap as the place of disease: it shows what drove the score."""


def calibration(evaluation: Evaluation) -> str:
    """Calibration before and after the temperature, with the reliability diagram."""
    if not evaluation.calibration:
        return ""
    lines = table(
        ("rows", "ECE at temperature 1", "ECE as served", "ECE of as many perfectly calibrated films"),
        (
            (part.rows, str(part.ece_before), str(part.ece), f"{part.ece_by_chance:.3f}")
            for part in evaluation.calibration
        ),
    )
    return f"""## Calibration
Expected calibration error over ten bins of as many films each. Interval: {evaluation.interval}; a
resample has more error of this kind than the films themselves, so that these intervals lie too high.

{lines}

![Share of films with COVID-19 against the probability]({RELIABILITY})

"""


def views(evaluation: Evaluation) -> str:
    """What the projection gives away."""
    if not evaluation.views:
        return ""
    lines = table(
        (
            "rows",
            "films (COVID)",
            "AP of COVID",
            "AP of the others",
            "AUROC of the view",
            "AUROC within a view",
        ),
        (
            (
                part.rows,
                f"{part.films} ({part.positive})",
                f"{part.ap_of_positive:.0%}",
                f"{part.ap_of_negative:.0%}",
                str(part.view_auroc),
                str(part.within_auroc),
            )
            for part in evaluation.views
        ),
    )
    return f"""## Bedside films
A film taken at the bedside is AP, and who is ill lies in bed: where COVID films are AP more often than the
others, whoever calls every AP film positive scores well without looking at one. `AUROC of the view` is that;
`AUROC within a view` is the network's over pairs of films of one projection, and the better guide to what it
sees. Films of known projection only. Interval: {evaluation.interval}.

{lines}

"""


def groups(evaluation: Evaluation) -> str:
    """What the figures are made of: projections, sources, and what the other films show."""
    if not evaluation.subgroups:
        return ""
    lines = table(
        ("rows", "films left in", "films (COVID)", "AUROC", "floor AUROC"),
        (
            (
                *(part.rows, part.group, f"{part.films} ({part.positive})"),
                *(str(part.auroc), str(part.floor_auroc)),
            )
            for part in evaluation.subgroups
        ),
    )
    return f"""## Parts
The same network on parts of the rows. Most sources hold one class only: an AUROC near 1 there says that the
source is recognised, and not the disease. A part with fewer than {FEWEST} films of a class is left out.
Interval: {evaluation.interval}; where a part is ranked without a fault, it has no width.

{lines}

"""


def predictive_values(evaluation: Evaluation) -> str:
    """What a result is worth, by prevalence."""
    if not evaluation.predictive_values:
        return ""
    found = {(value.rows, value.point, value.prevalence): value for value in evaluation.predictive_values}
    lines = table(
        ("rows", "point", *(f"{prevalence:.0%}" for prevalence in PREVALENCES)),
        (
            (rows, point, *(_worth(found[rows, point, prevalence]) for prevalence in PREVALENCES))
            for rows, point in dict.fromkeys(key[:2] for key in found)
        ),
    )
    return f"""## Predictive values by prevalence
What a result would mean where that share of the films shows COVID-19: PPV, the share of positive results
that are right (95 % interval), and NPV, the share of negative ones. By Bayes from sensitivity and specificity
on the rows named, which a new hospital does not have to share.

{lines}

"""


def tried(candidates: Sequence[Candidate], init: str) -> str:
    """The log of candidates, what was not kept included; `init` is what the model began with."""
    if not candidates:
        return ""
    sources = sorted({source for candidate in candidates for source in candidate.leave_one_source_out})
    lines = table(
        (
            "candidate",
            "what",
            *(f"without {s}" for s in sources),
            "srcbal",
            "dev",
            "test",
            "pointing",
            "kept",
        ),
        (
            (
                candidate.name,
                candidate.what,
                *(_figure(candidate.leave_one_source_out.get(source)) for source in sources),
                *map(_figure, (candidate.srcbal, candidate.dev, candidate.test, candidate.pointing)),
                "yes" if candidate.kept else "no",
            )
            for candidate in candidates
        ),
    )
    return f"""## Tried
AUROC, with intervals of about 0.09 to either side: differences below 0.05 are noise. `without` a source: its
films were left out of this training and asked afterwards, which is the figure that selects.{_seen(init)}
Films of `test` were among those asked until 2026-11-26, and none since.
`pointing`: share of COVID films of `dev` whose map is highest in the lungs; no candidate is kept that has
less of it than the model that it replaces.

{lines}

"""


def _seen(init: str) -> str:
    if not init.startswith("pretrained:"):
        return ""
    return (
        " The weights\nthat it began with had seen them all the same, without their class: findings, opacity "
        "and view were learnt on\nfilms of every source, so that the figures without hannover and cxnet say "
        "less than they seem to; films of web are\nfew among those that may be learnt from."
    )


def _worth(value: PredictiveValue) -> str:
    ppv = "none positive" if value.ppv is None else _short(value.ppv)
    return f"{ppv} / {'none negative' if value.npv is None else f'{value.npv.value:.3f}'}"


def _short(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f}-{estimate.high:.2f})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
