"""The default model: learn, ask what it is worth, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.logs import get_logger
from training import checkpoint
from training.commands.options import Cache, Config, Data, Run, Seed, settings_of
from training.evaluation import floor
from training.evaluation.leave_out import leave_one_source_out
from training.films import datasets
from training.soup import average_runs
from training.train import load_network
from training.train import train as train_network

app = typer.Typer()
log = get_logger("training")
PRETRAINED = Path(__file__).parents[1] / "results" / "pretrained.safetensors"
"""What `configs/pretrain.toml` gave; the sweep in `results` began with it."""


@app.command()
def train(
    data: Data, run: Run, config: Config = None, seed: Seed = None, cache: Cache = Path("build")
) -> None:
    """Train, or go on where the run stopped."""
    settings = settings_of(config, seed)
    rows = datasets.read_rows(data)
    train_network(settings, rows, datasets.load_inputs(data, rows, cache), run)


@app.command()
def leave_out(
    *,
    data: Data,
    run: Run,
    config: Config = None,
    seed: Seed = None,
    fold: Annotated[list[str] | None, typer.Option(help="A fold's name; repeat for more.")] = None,
    cache: Cache = Path("build"),
) -> None:
    """Train with one source left out after the other: AUROC there, and where the maps point, choose."""
    settings = settings_of(config, seed)
    rows = datasets.read_rows(data)
    inputs_NHW = datasets.load_inputs(data, rows, cache)
    found = leave_one_source_out(
        settings, rows, inputs_NHW, floor.statistics(data, rows), run, only=fold or ()
    )
    for name, left in found.folds.items():
        log.info(
            "left_out",
            source=name,
            films=left.films,
            auroc=str(left.auroc),
            floor_auroc=str(left.floor_auroc),
            pointing=str(left.maps.pointing) if left.maps else None,
            lung_share=str(left.maps.lung_share) if left.maps else None,
        )
    log.info("left_out_mean", auroc=round(found.mean, 4))


@app.command()
def soup(
    *,
    data: Data,
    of: Annotated[list[Path], typer.Option(help="Directory of a finished run; repeat for more.")],
    run: Run,
    cache: Cache = Path("build"),
) -> None:
    """Make one network of runs that began alike, the mean of their weights; it is a run like any other."""
    rows = datasets.read_rows(data)
    whole = average_runs(of, rows, datasets.load_inputs(data, rows, cache), run)
    log.info("mean_written", run=str(run), members=len(whole.mean_of), init=whole.init)


@app.command()
def weights(
    run: Run, to: Annotated[Path, typer.Option(help="A file that ends in `.safetensors`.")] = PRETRAINED
) -> None:
    """Write what a run has learnt as weights for others to begin with (`init = "pretrained:FILE"`)."""
    network = load_network(run)
    to.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_features(to, network)
    log.info("weights_written", to=str(to), sha256=checkpoint.digest(to))
