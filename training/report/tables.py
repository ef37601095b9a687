"""The tables of the page, in Markdown: Table 2 beside ours, Appendix D, counts, times."""

from __future__ import annotations

from collections.abc import Sequence

from training.report.classification import (
    ABOVE_FLOOR,
    CLASSES,
    FLOOR,
    FLOOR_APART,
    SETS,
    Measurement,
    confusion,
)
from training.report.finished import Finished, label_of
from training.report.published import Doubt, published
from training.sweep.systems import System, report_systems

SET_NAMES = {"train": "train", "dev": "validation (dev)", "test": "test", "srcbal": "source-balanced films"}
_METRICS = {
    "accuracy": ("all", "Accuracy"),
    "precision": ("covid", "Precision"),
    "recall": ("covid", "Recall"),
    "f1": ("covid", "F1"),
    "auroc": ("all", "AUROC"),
}
_CLASS_NAMES = {"covid": "COVID", "noncovid": "other", "weighted": "weighted"}
_NOT_RUN = "not run yet"
Key = tuple[str, str, str, str]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A Markdown table whose first columns hold words and whose others hold numbers."""
    ruler = [":--" if place < words else "--:" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ruler, *rows))


def names() -> dict[str, str]:
    """Short name of every system."""
    floors = {FLOOR: "Floor", FLOOR_APART: "Floor, without these publishers"}
    return {system.name: label_of(system) for system in report_systems()} | floors


def by_key(measurements: Sequence[Measurement]) -> dict[Key, Measurement]:
    """Measurements by system, split, class and metric."""
    return {(m.system, m.split, m.label, m.metric): m for m in measurements}


def percent(measurement: Measurement | None) -> str:
    """A figure in percent with its interval."""
    if measurement is None:
        return ""
    if measurement.low is None or measurement.high is None:
        return f"{100 * measurement.value:.1f}"
    to = " to " if measurement.low < 0 else "-"
    return f"{100 * measurement.value:.1f} ({100 * measurement.low:.1f}{to}{100 * measurement.high:.1f})"


def beside_table_2(measurements: Sequence[Measurement]) -> str:
    """Table 2 of the report, line by line, ours with its interval; doubts are marked and explained below."""
    found, marks, columns = by_key(measurements), _marks(), published().table2
    there = {m.system for m in measurements}
    header = ["Figure, %", "on"]
    for system, column in columns.items():
        header += [f"{column.model}, report", f"{names()[system]}, ours (95 % interval)"]
    rows = []
    for metric, (label, name) in _METRICS.items():
        for split in ("train", "test", "dev"):
            row = [name, SET_NAMES[split]]
            for system, column in columns.items():
                mark = marks.get((system, metric, split), "")
                ours = percent(found.get((system, split, label, metric))) if system in there else _NOT_RUN
                row += [f"{getattr(column, metric)[split]:.1f}{mark}", ours]
            rows.append(row)
    notes = [f"{marks[d.system, d.metric, d.split]} {_sentence(d)}" for d in published().doubts]
    return table(header, rows, words=2) + "\n\n" + "  \n".join(notes)


def metric_table(measurements: Sequence[Measurement], split: str) -> str:
    """Appendix D for one set: every system, per class and weighted; empty where the set is not measured."""
    found = by_key([m for m in measurements if m.split == split])
    if not found:
        return ""
    parts = [(label, metric) for label in CLASSES for metric in ("precision", "recall", "f1")]
    short = {"precision": "P", "recall": "R", "f1": "F1"}
    header = ["System", "accuracy", "AUROC"]
    header += [f"{_CLASS_NAMES[label]} {short[metric]}" for label, metric in parts]
    rows = []
    for system in dict.fromkeys(m.system for m in measurements):
        row = [names()[system]]
        row += [percent(found[system, split, "all", metric]) for metric in ("accuracy", "auroc")]
        row += [f"{100 * found[system, split, label, metric].value:.1f}" for label, metric in parts]
        rows.append(row)
    return table(header, rows)


def supports(measurements: Sequence[Measurement], split: str) -> str:
    """How many films and patients of each class a set has, in words."""
    found = by_key(measurements)
    first = measurements[0].system
    told = []
    for label, name in (("covid", "COVID"), ("noncovid", "other")):
        films, patients = (found.get((first, split, label, metric)) for metric in ("support", "patients"))
        if films is None or patients is None:
            return "no films of both classes"
        told.append(f"{films.value:.0f} {name} films of {patients.value:.0f} patients")
    return ", ".join(told)


def floors_alike(measurements: Sequence[Measurement]) -> str:
    """What to say where the floors call films alike and rank them otherwise; else nothing."""
    found = by_key(measurements)

    def alike(split: str, label: str, metric: str) -> bool:
        floor, apart = (found.get((name, split, label, metric)) for name in (FLOOR, FLOOR_APART))
        return floor is not None and apart is not None and floor.value == apart.value

    held_back = [split for split in SETS if split != "train"]
    called = (("covid", "recall"), ("noncovid", "recall"))
    if not all(alike(split, *figure) for split in held_back for figure in called):
        return ""
    if all(alike(split, "all", "auroc") for split in held_back):
        return ""  # one forest: these publishers were in no film that was learnt from
    return (
        " At p > 0.5 both call as many films of each class COVID on every set that was held back; their "
        "probabilities are others, as the AUROC tells."
    )


def conclusion(measurements: Sequence[Measurement]) -> str:
    """The best network's AUROC beside the floors, on what was held back; empty without a floor."""
    found = by_key(measurements)
    told = []
    for split in ("test", "srcbal"):
        floor, apart = (found.get((name, split, "all", "auroc")) for name in (FLOOR, FLOOR_APART))
        nets = [
            m
            for m in measurements
            if (m.split, m.metric) == (split, "auroc") and m.system not in {FLOOR, FLOOR_APART}
        ]
        if floor is None or not nets:
            continue
        best = max(nets, key=lambda m: m.value)
        above = found[best.system, split, *ABOVE_FLOOR]
        word = "does not reach" if best.value <= floor.value else "is above, but not clear of,"
        if above.low is not None and above.low > 0:
            word = "is above"
        beside = f"; of a floor that knows no film of these publishers: {percent(apart)}" if apart else ""
        reached = (
            f"has an AUROC of {percent(best)} and {word} the floor, {percent(floor)}{beside}. Its AUROC less "
            f"the floor's, in the same resamples, is {percent(above)}."
        )
        told.append(
            f"- On {SET_NAMES[split]} ({supports(measurements, split)}) the best network, "
            f"{names()[best.system]}, {reached} It is the best of {len(nets)} by these very films: chance is "
            "in its lead, and not in its interval."
        )
    return "\n".join(told)


def confusion_table(done: Sequence[Finished]) -> str:
    """Counts of every run on every set: true positive, false negative, false positive, true negative."""
    rows = []
    for run in done:
        row = [run.label]
        for split in SETS:
            c = confusion(run.predictions, split)
            row.append(f"{c.true_positive} / {c.false_negative} / {c.false_positive} / {c.true_negative}")
        rows.append(row)
    return table(["System", *(SET_NAMES[split] for split in SETS)], rows)


def time_table(done: Sequence[Finished]) -> str:
    """How long each run learnt, on what, and which epoch was kept; machines had other work, too."""
    header = [
        "System",
        "device",
        "precision",
        "minutes",
        "seconds an epoch: median (fastest to slowest)",
        "epoch kept",
        "its accuracy on dev, %",
    ]
    rows = [
        [
            run.label,
            run.configuration.device,
            run.configuration.precision,
            f"{run.minutes:.1f}",
            "{1:.0f} ({0:.0f} to {2:.0f})".format(*run.epoch_seconds),
            f"{run.best.epoch} of {len(run.log)}",
            f"{100 * run.best.dev_accuracy:.1f}",
        ]
        for run in done
    ]
    return table(header, rows, words=3)


def time_ratio(done: Sequence[Finished]) -> str:
    """A sentence on how much less time 311 trainable tensors take than 362, in the report and here."""
    times = published().times
    said = (
        f"The report's fully retrained DenseNet-121 (362 trainable tensors) took {times.retrained:.1f} "
        f"minutes and Model 10 (311) {times.model_10_faster_by:.0f} minutes less, "
        f"a ratio of {(times.retrained - times.model_10_faster_by) / times.retrained:.2f}"
    )
    ours = {run.system.trainable: run for run in done if run.system.network == "densenet-121"}
    if not {311, 362} <= set(ours):
        return f"{said}; ours is {_NOT_RUN}."
    partial, full = ours[311], ours[362]
    where = "" if partial.configuration.device == full.configuration.device else " (on different devices)"
    return (
        f"{said}; ours took {full.minutes:.1f} and {partial.minutes:.1f} minutes, "
        f"a ratio of {partial.minutes / full.minutes:.2f}{where}."
    )


def missing_line(missing: Sequence[System]) -> str:
    """Which systems have no run that is done."""
    return f"Not run yet: {', '.join(label_of(system) for system in missing)}." if missing else ""


def _marks() -> dict[tuple[str, str, str], str]:
    return {(d.system, d.metric, d.split): f"[{n}]" for n, d in enumerate(published().doubts, 1)}


def _sentence(doubt: Doubt) -> str:
    return f"{published().table2[doubt.system].model}: {doubt.why}."
