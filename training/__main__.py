"""`python -m training`: from films to a model bundle. This file knows the order of the stations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import typer
from numpy.typing import NDArray

from dicom_node.errors import ConfigurationError, CovarianceError
from dicom_node.logs import configure_logs, get_logger
from training import checkpoint
from training.bundle.candidates import read_candidates
from training.bundle.card import CARD, write_card
from training.bundle.export import export as export_bundle
from training.bundle.provenance import Provenance, RunRecord, sources_of
from training.bundle.reliability import RELIABILITY, draw_reliability
from training.device import best_device, denormals_flushed
from training.evaluation import floor
from training.evaluation.evaluate import Evaluation, measured
from training.evaluation.evaluate import evaluate as evaluate_logits
from training.evaluation.leave_out import leave_one_source_out
from training.explain.examine import explain as explain_maps
from training.explain.examine import served, trained
from training.explain.explanation import read_explanation, write_explanation
from training.films import datasets, splits
from training.report.page import Pictures, write_report
from training.settings import TrainingSettings, read_settings
from training.soup import average_runs
from training.sweep.reproduce import report_films
from training.sweep.reproduce import reproduce as reproduce_system
from training.sweep.systems import SYSTEMS, read_systems, select
from training.train import CHECKPOINT, CONFIGURATION, infer, load_network
from training.train import train as train_network
from worker.settings import DEFAULT_BUNDLE

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
log = get_logger("training")

EVALUATION = "evaluation.json"
PRETRAINED = Path(__file__).parent / "results" / "pretrained.safetensors"
"""What `configs/pretrain.toml` gave; the sweep in `results` began with it."""
Data = Annotated[Path, typer.Option(help="Folder with the catalogue `manifest.csv` and its films.")]
Run = Annotated[Path, typer.Option(help="Run directory: configuration, log, checkpoint, evaluation.")]
Cache = Annotated[Path, typer.Option(help="Folder for films that went through the recipe.")]
Config = Annotated[Path | None, typer.Option(help="TOML file with training settings.")]
Seed = Annotated[int | None, typer.Option(help="Instead of the configuration's.")]
Bundle = Annotated[Path, typer.Option(help="Directory of the bundle.")]
Version = Annotated[str, typer.Option(help="Version of the bundle.")]


@app.callback()
def prepare() -> None:
    """Train, evaluate and export the network that the worker serves."""
    configure_logs()


@app.command()
def train(
    data: Data, run: Run, config: Config = None, seed: Seed = None, cache: Cache = Path("build")
) -> None:
    """Train, or go on where the run stopped."""
    settings = _settings(config, seed)
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
    """Train with one source left out after the other; the mean AUROC there chooses between candidates."""
    settings = _settings(config, seed)
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
    checkpoint.write_features(to, load_network(run))
    log.info("weights_written", to=str(to), sha256=checkpoint.digest(to))


@app.command()
def evaluate(data: Data, run: Run, cache: Cache = Path("build")) -> None:
    """Calibrate on `dev`, choose thresholds there, and measure every set of rows beside the floor."""
    rows = datasets.read_rows(data)
    inputs_NHW = datasets.load_inputs(data, rows, cache)
    model = load_network(run)
    logits_N = np.full(len(rows), np.nan, np.float32)
    wanted_N = measured(rows)
    logits_N[wanted_N] = infer(model, inputs_NHW[wanted_N])
    evaluation = evaluate_logits(
        rows, logits_N, floor.statistics(data, rows), checkpoint.digest(run / CHECKPOINT)
    )
    (run / EVALUATION).write_text(evaluation.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for figures in evaluation.figures:
        log.info(
            "measured", rows=figures.rows, auroc=str(figures.auroc), floor_auroc=str(figures.floor_auroc)
        )


@app.command()
def explain(
    *,
    data: Data,
    run: Annotated[Path | None, typer.Option(help="Run directory whose checkpoint is tested.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Or the bundle whose model is.")] = None,
    split: Annotated[str, typer.Option(help="Whose films are looked at.")] = "dev",
    films: Annotated[int, typer.Option(min=1, help="Films of each class for what takes many passes.")] = 12,
    seed: Annotated[int, typer.Option(help="Another seed draws other films and weights.")] = 0,
    cache: Cache = Path("build"),
) -> None:
    """Test the maps: do they point into the lungs, show what was learnt, and mark what the score rests on?"""
    if (run is None) == (bundle is None):
        raise ConfigurationError("Name either a run or a bundle to explain.")
    if split not in datasets.SPLITS:
        raise ConfigurationError(f"`{split}` is not a split: choose one of {', '.join(datasets.SPLITS)}.")
    rows = datasets.read_rows(data)
    inputs_NHW = datasets.load_inputs(data, rows, cache)
    network = trained(run, _evaluation(run, rows)) if run else served(cast(Path, bundle))
    explanation = explain_maps(network, rows, inputs_NHW, split=split, sample=films, seed=seed)
    write_explanation(cast(Path, run or bundle), explanation)
    for found in explanation.pointing:
        log.info(
            "pointing",
            map=found.map,
            films_of=found.films_of,
            mass=str(found.location.mass),
            lung_share=str(found.location.lung_share),
            pointing=str(found.location.pointing),
        )


@app.command()
def export(data: Data, run: Run, bundle: Bundle = DEFAULT_BUNDLE, version: Version = "0.0.1") -> None:
    """Write the bundle and its model card from an evaluated run."""
    rows = datasets.read_rows(data)
    evaluation = _evaluation(run, rows)
    model = load_network(run)
    provenance = Provenance(
        command=f"python -m training bundle --data {data} --run {run} --version {version}",
        run=RunRecord.model_validate_json((run / CONFIGURATION).read_bytes()),
        sources=sources_of(rows),
        evaluation=evaluation,
        explanation=read_explanation(run, evaluation.checkpoint_sha256, evaluation.data_sha256),
        candidates=read_candidates(),
    )
    manifest = export_bundle(
        model, evaluation, bundle, version=version, training=provenance.model_dump(mode="json")
    )
    draw_reliability(evaluation.calibration, bundle / RELIABILITY)
    (bundle / CARD).write_text(write_card(manifest), encoding="utf-8")
    log.info("bundle_written", version=version, model=manifest.model.sha256)


@app.command()
def bundle(
    *,
    data: Data,
    run: Run,
    config: Config = None,
    cache: Cache = Path("build"),
    bundle: Bundle = DEFAULT_BUNDLE,
    version: Version = "0.0.1",
) -> None:
    """Train, evaluate and export, one after the other."""
    train(data, run, config, cache=cache)
    evaluate(data, run, cache)
    export(data, run, bundle, version)


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


def _settings(config: Path | None, seed: int | None) -> TrainingSettings:
    settings = read_settings(config) if config else TrainingSettings()
    return settings if seed is None else settings.model_copy(update={"seed": seed})


def _evaluation(run: Path, rows: tuple[datasets.Row, ...]) -> Evaluation:
    try:
        evaluation = Evaluation.model_validate_json((run / EVALUATION).read_bytes())
    except (OSError, ValueError):
        raise ConfigurationError(f"The run {run} is not evaluated yet: run `evaluate` first.") from None
    now = (checkpoint.digest(run / CHECKPOINT), datasets.digest(rows))
    if (evaluation.checkpoint_sha256, evaluation.data_sha256) != now:
        raise ConfigurationError(
            f"The run {run} was evaluated with other weights or films: evaluate it again."
        )
    return evaluation


def main() -> None:
    """Run a command; what we raise on purpose is one sentence, not a traceback."""
    try:
        with denormals_flushed():
            app()
    except CovarianceError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
