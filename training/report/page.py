"""The page on the report's systems: `metrics.csv`, `report.md`, `report.html` and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path

import numpy as np
from markdown_it import MarkdownIt
from numpy.typing import NDArray
from scipy.special import logit

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger
from training.evaluation import floor
from training.files import write_whole
from training.films import datasets
from training.films.datasets import Row
from training.report import maps, sections
from training.report.classification import FLOOR, FLOOR_APART, measure, write_metrics
from training.report.finished import Finished, finished_runs
from training.report.pagestyle import HTML
from training.report.pictures import style
from training.report.sections import Paper

METRICS, MARKDOWN, PAGE = "metrics.csv", "report.md", "report.html"
log = get_logger("report")


class Pictures(Enum):
    """What the maps are shown on."""

    PHANTOM = "phantom"
    FILMS = "films"


def write_report(runs: Path, out: Path, *, data: Path | None, pictures: Pictures, command: str) -> None:
    """Write the page on the runs that are done.

    Args:
        runs: folder with a run directory for each system.
        out: folder for the page.
        data: the catalogue, for the floor and for real films.
        pictures: what the maps are shown on.
        command: that makes the page.

    Raises:
        ConfigurationError: no run is done, runs or catalogue are of other films, or a file is unusable.
    """
    done, missing = finished_runs(runs)
    rows = _catalogue(data, done[0]) if data else None
    if pictures is Pictures.FILMS and (rows is None or data is None):
        raise ConfigurationError("Real films are shown only when `--data` says where they are.")
    out.mkdir(parents=True, exist_ok=True)
    logits = {run.system.name: run.predictions.logits_N for run in done}
    if rows is not None and data is not None:
        for name, apart in ((FLOOR, False), (FLOOR_APART, True)):
            if (floor_N := floor_logits(data, rows, done[0], apart=apart)) is not None:
                logits[name] = floor_N
    measurements = measure(done[0].predictions, logits)
    write_metrics(out / METRICS, measurements)
    style()
    paper = Paper(folder=out)
    sections.opening(paper, done, missing, command)
    sections.figures_of_merit(paper, done, measurements)
    if pictures is Pictures.FILMS and rows is not None and data is not None:
        sections.what_they_look_at(paper, done, maps.test_films(data, rows, done[0].predictions), real=True)
    else:
        sections.what_they_look_at(paper, done, maps.phantom_films(), real=False)
    sections.making(paper, done)
    text = "\n\n".join(paper.parts) + "\n"
    write_whole(out / MARKDOWN, text)
    write_whole(out / PAGE, as_html(text))
    log.info("report_written", to=str(out), systems=len(done), missing=len(missing))


def as_html(text: str) -> str:
    """A page from Markdown; wide tables scroll and well-formed XML comes out."""
    body = MarkdownIt("commonmark", {"xhtmlOut": True, "html": False}).enable("table").render(text)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    return HTML.replace("BODY", body)


def floor_logits(
    data: Path, rows: Sequence[Row], run: Finished, *, apart: bool = False
) -> NDArray[np.float64] | None:
    """Logits `(N,)` of a forest on trivial statistics that learnt from the films the runs learnt from.

    With `apart` without those of publishers that contribute both classes, so that it knows none of theirs.
    None where that leaves films of one class only.
    """
    statistics = floor.statistics(data, rows)
    learnt = run.predictions.splits_N == "train"
    if apart:
        learnt &= ~run.predictions.balanced_N
    labels = run.predictions.labels_N[learnt]
    if len(np.unique(labels)) < 2:
        return None
    forest = floor.fit_floor(statistics[learnt], labels)
    probability = forest.predict_proba(statistics)[:, 1]
    return np.asarray(logit(np.clip(probability, 1e-6, 1 - 1e-6)), np.float64)


def _catalogue(data: Path, run: Finished) -> tuple[Row, ...]:
    """The rows of the runs, in their order."""
    known = {row.file: row for row in datasets.read_rows(data, guarded=run.configuration.split == "patient")}
    rows = tuple(known[name] for name in run.predictions.files if name in known)
    if len(rows) != len(run.predictions.files) or datasets.digest(rows) != run.configuration.data:
        raise ConfigurationError(f"The films of {data} are not those that the runs were made from.")
    return rows
