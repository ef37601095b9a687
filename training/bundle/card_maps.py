"""The section of the model card that says what the tests of the maps found."""

from __future__ import annotations

from training.bundle.markdown import table
from training.evaluation.metrics import Estimate
from training.explain.explanation import Explanation
from training.explain.localise import Location
from training.explain.regions import Regions

_NOTHING = 0.5
"""AUROC of a coin."""


def maps(explanation: Explanation | None, *, asked: bool = False) -> str:
    """What the tests of the maps found; `asked`: training asked the map to lie in the lungs."""
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

{_verdict(explanation)}{_asked(asked)}

{_regions(explanation.regions)}
**Does it show what was learnt?** Likeness with the original map after the parts down to this one were drawn
anew ({sample}; Adebayo et al. 2018). A map that tells of the network comes near 0; one that stays alike shows
the film's own edges.

{_randomised(explanation)}

**Does the score rest on what it marks?** Area under the probability while the points of COVID films go, or
come back, in the map's order ({explanation.sample} films; Petsiuk et al. 2018). Random maps are as coarse as
`cam`; single pixels taken in the order of `saliency` make a film unlike any other, which tells against it.

{_removal(explanation)}

"""


def _pointing(explanation: Explanation) -> str:
    return table(
        ("map", "films", "mass", "mass of a Gaussian", "lungs' share", "pointing"),
        (
            (
                part.map,
                f"{part.location.films} {part.films_of}",
                _mass(part.location),
                str(part.location.gaussian_mass),
                str(part.location.lung_share),
                str(part.location.pointing),
            )
            for part in explanation.pointing
        ),
    )


def _mass(location: Location) -> str:
    if location.mass is None:
        return "no positive part"
    there = location.films - location.without_positive
    return f"{location.mass}{f' of {there} with any' if location.without_positive else ''}"


def _asked(asked: bool) -> str:
    if not asked:
        return ""
    return (
        "\nTraining asked for this, with lungs found by the same method, and a point of the map sees more of "
        "the film than\nits place: it shows that training did what it was asked, and not that the score "
        "rests on lungs."
    )


def _regions(regions: Regions | None) -> str:
    if regions is None:
        return ""
    rows = (
        ("whole films", regions.whole),
        ("lungs alone, the rest grey", regions.lungs_alone),
        ("without lungs, they are grey", regions.without_lungs),
    )
    told = (
        "The classes are told apart with the lungs grey: **the score rests on more than what the lungs "
        "show**,\nbe it what lies outside of them or their outline, which opacities change, too."
        if regions.without_lungs.low > _NOTHING
        else "Without lungs nothing is clear of chance."
    )
    return f"""
**Does the score rest on lungs?** AUROC where a part of each film is grey. The outline of the part stays, and
with it the shape of the lungs; no such film was learnt from.

{table(("films", "AUROC"), ((name, str(area)) for name, area in rows))}

{told}
"""


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
    return table(
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
    return table(
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
