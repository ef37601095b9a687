"""Sections of the model card that are there when they were measured. Each ends with an empty line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from training.bundle.candidates import Candidate
from training.bundle.reliability import RELIABILITY
from training.evaluation.calibration import PREVALENCES, PredictiveValue
from training.evaluation.evaluate import Evaluation
from training.evaluation.metrics import Estimate
from training.explain.explanation import Explanation
from training.explain.localise import Location


def who_must_not_rely(evaluation: Evaluation) -> str:
    """For whom the model is not."""
    rare = [value for value in evaluation.predictive_values if value.prevalence == min(PREVALENCES)]
    most = max((value.ppv.value for value in rare if value.ppv), default=None)
    worth = "" if most is None else f" (at {min(PREVALENCES):.0%}, at most {most:.0%} of positives are right)"
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
    lines = _table(
        ("rows", "ECE at temperature 1", "ECE as served", "ECE of as many perfectly calibrated films"),
        (
            (part.rows, str(part.ece_before), str(part.ece), f"{part.ece_by_chance:.3f}")
            for part in evaluation.calibration
        ),
    )
    return f"""## Calibration
Expected calibration error over ten bins of as many films each. Interval: {evaluation.interval}.

{lines}

![Share of films with COVID-19 against the probability]({RELIABILITY})

"""


def views(evaluation: Evaluation) -> str:
    """What the projection gives away."""
    if not evaluation.views:
        return ""
    lines = _table(
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


def predictive_values(evaluation: Evaluation) -> str:
    """What a result is worth, by prevalence."""
    if not evaluation.predictive_values:
        return ""
    found = {(value.rows, value.point, value.prevalence): value for value in evaluation.predictive_values}
    lines = _table(
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


def maps(explanation: Explanation | None) -> str:
    """What the tests of the maps found."""
    if explanation is None:
        return ""
    sample = f"{explanation.sample} films of each class"
    return f"""## Maps, tested
On `{explanation.split}` ({explanation.films} films; the lungs were found by a classical method, and on
{explanation.average_lungs} an average shape stands for them). `cam` is the map that the worker shows,
`saliency` the absolute gradient that the report shows, on {sample} only.

**Does it look at the lungs?** Mass: share of the map's positive part inside the lungs. Pointing: share of
films whose map is highest there. Chance is the lungs' share of the area; a Gaussian in the middle of the film
knows only that films are centred.

{_pointing(explanation)}

{_verdict(explanation)}

**Does it show what was learnt?** Likeness with the original map after the parts down to this one were drawn
anew ({sample}; Adebayo et al. 2018). A map that tells of the network comes near 0; one that stays alike shows
the film's own edges.

{_randomised(explanation)}

**Does the score rest on what it marks?** Area under the probability while the points of COVID films go, or
come back, in the map's order ({explanation.sample} films; Petsiuk et al. 2018). Random maps are as coarse as
`cam`; single pixels taken in the order of `saliency` make a film unlike any other, which tells against it.

{_removal(explanation)}

"""


def tried(candidates: Sequence[Candidate]) -> str:
    """The log of candidates, what was not kept included."""
    if not candidates:
        return ""
    sources = sorted({source for candidate in candidates for source in candidate.leave_one_source_out})
    lines = _table(
        ("candidate", "what", *(f"without {s}" for s in sources), "srcbal", "dev", "test", "kept"),
        (
            (
                candidate.name,
                candidate.what,
                *(_figure(candidate.leave_one_source_out.get(source)) for source in sources),
                *map(_figure, (candidate.srcbal, candidate.dev, candidate.test)),
                "yes" if candidate.kept else "no",
            )
            for candidate in candidates
        ),
    )
    return f"""## Tried
AUROC. `without` a source: trained without its films and measured on them, which is the figure that selects.

{lines}

"""


def _pointing(explanation: Explanation) -> str:
    return _table(
        ("map", "films", "mass", "mass of a Gaussian", "lungs' share", "pointing"),
        (
            (
                part.map,
                f"{part.location.films} {part.films_of}",
                str(part.location.mass or "no positive part"),
                str(part.location.gaussian_mass),
                str(part.location.lung_share),
                str(part.location.pointing),
            )
            for part in explanation.pointing
        ),
    )


def _verdict(explanation: Explanation) -> str:
    above = next(
        part.location for part in explanation.pointing if (part.map, part.films_of) == ("cam", "COVID")
    )
    mass, points = _against(above.mass_above_share), _against(above.pointing_above_share)
    return (
        f"On COVID films the activation map's mass in the lungs is {mass} (by {above.mass_above_share}), "
        f"and its maximum lies there {points} (by {above.pointing_above_share}). {_centred(above)}"
    )


def _centred(location: Location) -> str:
    if location.mass is None or location.mass.value > location.gaussian_mass.value:
        return ""
    return (
        "A blob in the middle of the film, which knows nothing of it, **has more of its mass in the lungs**."
    )


def _against(difference: Estimate | None) -> str:
    if difference is None:
        return "nowhere, since no map is above 0"
    if difference.low > 0:
        return "above chance"
    return "**below chance**" if difference.high < 0 else "**not clear of chance**"


def _randomised(explanation: Explanation) -> str:
    return _table(
        ("down to", "cam, rank correlation", "cam, SSIM", "saliency, rank correlation", "saliency, SSIM"),
        (
            (
                part.part,
                *map(
                    str,
                    (
                        part.cam_correlation,
                        part.cam_similarity,
                        part.saliency_correlation,
                        part.saliency_similarity,
                    ),
                ),
            )
            for part in explanation.randomised
        ),
    )


def _removal(explanation: Explanation) -> str:
    return _table(
        ("order", "deletion (less is better)", "below random", "insertion (more is better)", "above random"),
        (
            (
                part.order,
                str(part.deletion),
                "" if part.order == "random" else str(part.deletion_below_random),
                str(part.insertion),
                "" if part.order == "random" else str(part.insertion_above_random),
            )
            for part in explanation.removal
        ),
    )


def _worth(value: PredictiveValue) -> str:
    ppv = "none positive" if value.ppv is None else _short(value.ppv)
    return f"{ppv} / {'none negative' if value.npv is None else f'{value.npv.value:.3f}'}"


def _short(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f}-{estimate.high:.2f})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    # A bar within a cell would begin another one.
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
