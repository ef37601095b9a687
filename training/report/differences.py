"""What differs from the report by choice, said of the runs that are there."""

from __future__ import annotations

from collections.abc import Sequence

from training.report.finished import Finished

_ALWAYS = (
    "**COVID-19 is the positive class.** The class folders of the report's notebooks made it 0, and whether "
    "the weight of 6.12 favoured COVID films cannot be told. Here it does.",
    "**Everything random follows a seed**, and an interrupted run goes on as if it never was. The report "
    "has no seed.",
    "**Films are grey.** One channel is read, and three equal ones go in, as from the report's RGB copies.",
    "**The inputs of ResNet-18 and DenseNet-121 are centred** (grey minus 0.5, over 0.289). The report "
    "scales to [0, 1] only; the baseline CNN here does too.",
    "**Batches of an epoch are of nearly equal size**, so that no last one of a single film upsets the "
    "batch normalisation.",
    "**The dropout of baseline Models 2-4 is 0.25**; the report does not give its rate.",
    "**Intervals** are of 1000 resamples of patients. The report has none; with 65 films a class most "
    "differences between its models are within them.",
    "**The source-balanced films and the floor** stand beside the report's splits, because nearly all COVID "
    "films of such collections come from other publishers than the others, and a network may read that.",
    "**Times are of median epochs.** The machines had other work, too, and were not all alike: a ratio is "
    "one of systems only where the device is the same.",
    "**The exact class activation map** stands beside the report's saliency. Its mean is the film's logit.",
)


def differences(done: Sequence[Finished]) -> tuple[str, ...]:
    """Sentences in Markdown, those first that depend on how the runs were made."""
    found: list[str] = []
    if done[0].configuration.split == "patient":
        found.append(
            "**No patient stands in two splits.** The report drew images, and patients and identical "
            "pictures crossed its splits."
        )
    else:
        found.append("**Images were drawn, not patients**, as in the report: patients cross the splits.")
    dense = [run for run in done if run.system.network == "densenet-121"]
    begun = sorted({run.configuration.init for run in dense})
    if begun and not all("chexnet" in init.lower() for init in begun):
        found.append(
            f"**DenseNet-121 begins with other weights** ({'; '.join(begun)}). The report began with the "
            "published CheXNet weights, which are not at hand here, so its figures are no target for ours."
        )
    if any(run.system.frozen_statistics == "fixed" for run in dense):
        found.append(
            "**Frozen batch normalisations keep their statistics**, so that a film's frozen features are "
            "computed once. In the report they went on updating."
        )
    if any(run.configuration.precision == "bfloat16" for run in done):
        found.append("**Activations are bfloat16** where the table of times says so; weights are float32.")
    return (*found, *_ALWAYS)
