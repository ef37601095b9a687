"""What stands on the page on the report's systems, part by part."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from training.films import datasets
from training.report import diagrams, figures, looks, maps, tables
from training.report.classification import FLOOR, SETS, Measurement, confusion
from training.report.differences import differences
from training.report.finished import Finished
from training.report.maps import Shown
from training.report.pictures import save
from training.report.published import published
from training.sweep import runs
from training.sweep.systems import FEATURE_TENSORS, System, report_systems

PICTURES = "pictures"
"""Folder beside the page."""


@dataclass(kw_only=True)
class Paper:
    """The page as it grows."""

    folder: Path
    parts: list[str] = field(default_factory=list)

    def add(self, *paragraphs: str) -> None:
        """Put paragraphs behind the others; empty ones are left out."""
        self.parts += [paragraph for paragraph in paragraphs if paragraph]

    def picture(self, name: str, figure: Figure, says: str) -> str:
        """Write a picture; what stands for it in Markdown."""
        save(figure, self.folder / PICTURES / f"{name}.png")
        return f"![{says}]({PICTURES}/{name}.png)"


def opening(paper: Paper, done: Sequence[Finished], missing: Sequence[System], command: str) -> None:
    """How it was made, and what the films and the baseline CNN are."""

    def said(values: Sequence[str]) -> str:
        return "; ".join(dict.fromkeys(value or "unknown" for value in values))

    made = [run.configuration for run in done]
    paper.add(
        "# The report's systems, trained again",
        "**Research, not a medical device.** Nothing here may guide the care of a patient.",
        tables.missing_line(missing),
        "## How this was made",
        tables.table(
            ["What", "Value"],
            [
                ["Command", f"`{command}`"],
                ["Systems done", str(len(done))],
                ["Films", _counted(done[0])],
                ["Digest of the data (SHA-256)", f"`{made[0].data}`"],
                ["Code (commit)", said([m.commit for m in made])],
                ["Device", said([m.device for m in made])],
                ["Precision of activations", said([m.precision for m in made])],
                ["torch", said([m.torch for m in made])],
                ["Weights begun with", said([f"{m.init} ({m.system.network})" for m in made])],
            ],
            words=2,
        ),
        "Work-flow (the report's Appendix C):",
        paper.picture("workflow", diagrams.workflow_figure(_films(done[0]), made[0].split), "The work-flow"),
        "Baseline CNN (the report's Appendix A):",
        paper.picture("baseline-cnn", diagrams.cnn_figure(), "The baseline CNN"),
    )


def _counted(run: Finished) -> str:
    splits = run.predictions.splits_N
    extra = int((splits == "extra").sum())
    beside = f", and {extra} that are measured only" if extra else ""
    return f"{len(splits) - extra:,} of the report's subset, split by {run.configuration.split}{beside}"


def _films(run: Finished) -> dict[str, tuple[int, int]]:
    counted = {split: confusion(run.predictions, split) for split in datasets.SPLITS}
    return {
        split: (c.true_positive + c.false_negative, c.false_positive + c.true_negative)
        for split, c in counted.items()
    }


def figures_of_merit(paper: Paper, done: Sequence[Finished], measurements: Sequence[Measurement]) -> None:
    """Table 2, Appendix D, Figure 2 and Appendix B."""
    paper.add(
        "## In short" if (told := tables.conclusion(measurements)) else "",
        told,
        "## Table 2 of the report beside ours",
        "Percent; COVID-19 is the positive class, a film is called COVID at p > 0.5. Intervals (95 %) are of "
        "1000 resamples of patients.",
        tables.beside_table_2(measurements),
        "In the report's text ResNet-18 has a validation accuracy of "
        f"{published().other.resnet_18_dev_accuracy:.0f} %; ours: "
        + (
            tables.percent(tables.by_key(measurements).get(("resnet-18", "dev", "all", "accuracy")))
            or "not run"
        )
        + ".",
        "## All systems (Appendix D)",
        "Percent. P: precision (positive predictive value), R: recall (of COVID: sensitivity; of the others: "
        "specificity), F1: their harmonic mean; weighted: by the films of each class. Every interval is in "
        "`metrics.csv`.",
    )
    if any(m.system == FLOOR for m in measurements):
        paper.add(
            "**Floor** is a random forest on eight statistics of a film, blind to the lungs: size, grey "
            "values, borders. A network that does no better has shown nothing about lungs. Of the films that "
            "forest and networks learnt from, some are of the publishers of the source-balanced set, other "
            "patients of theirs; **Floor, without these publishers** learnt from none of those."
            + tables.floors_alike(measurements)
        )
    for split in SETS:
        found = tables.metric_table(measurements, split)
        paper.add(f"### On {tables.SET_NAMES[split]}: {tables.supports(measurements, split)}", found)
    paper.add(
        "Source-balanced films are of publishers that contribute both classes, and of patients that nothing "
        "was learnt of. Those of dev, which chose each run's epoch, are among them; where a class has fewer "
        "than twenty patients, the intervals are too narrow."
    )
    chart = figures.trainable_figure(done, measurements)
    if chart is not None:
        paper.add(
            "## Metrics against trainable tensors (Figure 2)",
            f"DenseNet-121, of whose {FEATURE_TENSORS} parameter tensors the last ones learn. Grey: the 95 % "
            "interval of AUROC; dashed: the floor's AUROC, below which a network shows nothing about "
            "lungs.",
            paper.picture("figure-2", chart, "Metrics against trainable tensors"),
        )
    paper.add(
        "## Confusion matrices (Appendix B)",
        "Films of test; a row holds the films of a class, a column what the system called them.",
        paper.picture("confusion", figures.confusion_figure(done), "Confusion matrices on test"),
        "Counts on every set: COVID called COVID / COVID missed / others called COVID / others called other.",
        tables.confusion_table(done),
    )


def what_they_look_at(paper: Paper, done: Sequence[Finished], films: Sequence[Shown], *, real: bool) -> None:
    """Figures 3-4 and Appendix E."""
    for system in report_systems():  # pictures of an earlier page might show patients
        shutil.rmtree(paper.folder / PICTURES / system.name, ignore_errors=True)
    chosen = maps.pictured([run for run in done if (run.has_weights if real else run.has_looks)])
    paper.add("## What the networks look at (Figures 3-4)")
    if not chosen:
        paper.add(f"No run holds {'weights' if real else 'pictures'}, so there is none here.")
        return
    paper.add(
        "**These are real films of the test split: keep this page where the films are.**"
        if real
        else "The films are phantoms, computed from a generated anatomy, because the repository may hold no "
        "patient's film. They show how the maps look, and nothing about patients.",
        "Saliency is the report's: the largest absolute gradient of the logit over the input's channels, "
        "each film's own maximum being 1, laid half-transparent over the film. The class activation map is "
        "exact: the log-odds that the film would have if all of it looked like that point; their mean is the "
        "film's logit. Red speaks for COVID-19, blue against it, with one scale for all films of a network. "
        "Only DenseNet-121 has it. A map shows what drove the score, not where disease is. Films are "
        "squared, as the networks take them.",
    )
    for run in chosen:
        folder = paper.folder / PICTURES / run.system.name
        if real:
            looks.draw(run.run, films, folder)
        else:
            shutil.copytree(run.run / runs.LOOKS, folder)
        at = f"{PICTURES}/{run.system.name}"
        has_map = (folder / looks.map_name(1)).exists()
        lines = []
        for number, caption in enumerate((shown.caption for shown in films), 1):
            lines.append(f"![{caption}: saliency]({at}/{looks.saliency_name(number)})")
            if has_map:
                lines[-1] += f"\n![{caption}: class activation map]({at}/{looks.map_name(number)})"
        # One film on a line, or two where there is no second map.
        paper.add(f"### {run.system.title}", ("\n\n" if has_map else "\n").join(lines))
        if not has_map:
            continue
        if run is not chosen[-1]:
            (folder / looks.ACTIVATIONS).unlink()
            continue
        paper.add(
            "## Activation maps (Appendix E)",
            f"{run.system.title}, {films[0].caption.lower()}: the first 16 channels behind each child of "
            "`features`, each from its darkest to its brightest value (channels x height x width).",
            f"![Activation maps]({at}/{looks.ACTIVATIONS})",
        )


def making(paper: Paper, done: Sequence[Finished]) -> None:
    """Times, curves, and what differs."""
    paper.add(
        "## Time and the epoch that was kept",
        "Of the epochs, the first with the best accuracy on dev is kept, as in the report. For that choice, "
        "and only there, DenseNet-121 calls a film COVID at a logit above 0.5, as the report did. Minutes "
        "are of all epochs, each with its look at dev; the one pass of a frozen prefix is not in them.",
        tables.time_table(done),
        tables.time_ratio(done),
        "## Curves",
        "Loss of the films learnt from (red, weighted as the system weights them) and accuracy on dev (blue, "
        "percent). The ring is the epoch that was kept.",
        paper.picture("curves", figures.curves_figure(done), "Loss and accuracy on dev"),
        "## What differs from the report by choice",
        "\n".join(f"- {sentence}" for sentence in differences(done)),
    )
