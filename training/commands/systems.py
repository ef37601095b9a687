"""The report's systems, the films that they learn from, and the page on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger
from training.commands.options import Cache, Data
from training.device import best_device
from training.films import datasets, splits
from training.report import looks
from training.report.page import Pictures, write_report
from training.sweep.reproduce import report_films
from training.sweep.reproduce import reproduce as reproduce_system
from training.sweep.systems import SYSTEMS, read_systems, select

app = typer.Typer()
log = get_logger("training")


@app.command()
def reproduce(
    *,
    data: Data,
    runs: Annotated[Path, typer.Option(help="Folder of the run directories, one a system.")] = Path("runs"),
    only: Annotated[list[str] | None, typer.Option(help="A system's name; repeat for more.")] = None,
    init: Annotated[str, typer.Option(help="What DenseNet-121 begins with, see README.")] = "random",
    systems: Annotated[Path, typer.Option(help="TOML file with the systems.")] = SYSTEMS,
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="For a split by image, as the report's.")
    ] = False,
    cache: Cache = Path("build"),
) -> None:
    """Train the report's systems one after the other; what is done is not done again."""
    chosen = select(read_systems(systems), only or ())
    rows = datasets.read_rows(data, guarded=not allow_leaks)

    def load(kept: Sequence[datasets.Row], size: int) -> NDArray[np.uint8]:
        return datasets.load_plain(data, kept, size, cache)

    films = report_films(rows, load, "image" if allow_leaks else "patient")
    device = best_device()
    for system in chosen:
        reproduce_system(system, films, runs / system.name, device, init)
        looks.keep(runs / system.name)


@app.command()
def split(
    *,
    data: Data,
    to: Annotated[Path, typer.Option(help="Folder for the new catalogue.")] = Path("build/split"),
    by: Annotated[splits.By, typer.Option(help="`image`, as the report did, leaks.")] = splits.By.PATIENT,
    seed: Annotated[int, typer.Option(help="Another seed draws other films.")] = 20201204,
    seedlike: Annotated[bool, typer.Option("--seedlike", help="Only films of the report's subset.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only look for leaks; exit code 2 for any.")] = False,
) -> None:
    """Draw train, dev and test anew, or look for films that stand on two sides."""
    rows, records = splits.read_catalogue(data, splitted=check, seedlike=seedlike)
    pairs = splits.alike(data, rows)
    if not check:
        rows = splits.draw(rows, pairs, seed=seed, by=by)
        splits.write_catalogue(rows, records, data, to)
        log.info("split_written", to=str(to), by=by.value, seed=seed, **splits.summary(rows, pairs))
        return
    found = splits.leaks(rows, pairs)
    for leak in found:
        typer.echo(str(leak))
    if found:
        raise ConfigurationError(f"{len(found)} pairs of films stand in two splits of {data}.")
    log.info("no_leak", **splits.summary(rows, pairs))


@app.command()
def report(
    *,
    runs: Annotated[Path, typer.Option(help="Folder with a run directory for each system of the report.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, its pictures and `metrics.csv`.")],
    data: Annotated[Path | None, typer.Option(help="Folder with the films: adds the floor.")] = None,
    pictures: Annotated[Pictures, typer.Option(help="`films` stays local: it shows patients.")] = (
        Pictures.PHANTOM
    ),
) -> None:
    """Write the page and the table on the report's systems, as far as they are done."""
    command = f"python -m training report --runs {runs} --out {out}"
    command += f" --data {data}" if data else ""
    command += f" --pictures {pictures.value}" if pictures is Pictures.FILMS else ""
    write_report(runs, out, data=data, pictures=pictures, command=command)
