"""From a run to a bundle: figures, maps that are tested, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import numpy as np
import typer

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger
from training import checkpoint
from training.bundle.candidates import read_candidates
from training.bundle.card import CARD, write_card
from training.bundle.catalogue import catalogue_of
from training.bundle.export import export as export_bundle
from training.bundle.provenance import Provenance, RunRecord, sources_of
from training.bundle.quantise import quantise as quantise_bundle
from training.bundle.reliability import RELIABILITY, draw_reliability
from training.commands.model import train
from training.commands.options import Bundle, Cache, Config, Data, Run, Version
from training.evaluation import floor
from training.evaluation.evaluate import Evaluation, measured
from training.evaluation.evaluate import evaluate as evaluate_logits
from training.explain.examine import explain as explain_maps
from training.explain.examine import served, trained
from training.explain.explanation import read_explanation, write_explanation
from training.files import write_whole
from training.films import datasets
from training.train import CHECKPOINT, CONFIGURATION, infer, load_network
from worker.settings import DEFAULT_BUNDLE

app = typer.Typer()
log = get_logger("training")
EVALUATION = "evaluation.json"
_SAMPLE = 12


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
    write_whole(run / EVALUATION, evaluation.model_dump_json(indent=2) + "\n")
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
    films: Annotated[int, typer.Option(min=1, help="Films a class for what takes many passes.")] = _SAMPLE,
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
    record = RunRecord.model_validate_json((run / CONFIGURATION).read_bytes())
    # Of a mean the runs come first, see the card: `bundle` would train one of its own.
    verb = "export" if record.mean_of else "bundle"
    provenance = Provenance(
        command=f"python -m training {verb} --data {data} --run {run} --version {version}",
        run=record,
        sources=sources_of(rows, record.settings.leave_out),
        evaluation=evaluation,
        explanation=read_explanation(run, evaluation.checkpoint_sha256, evaluation.data_sha256),
        # They were tried on films that are known, and say nothing about others.
        candidates=read_candidates() if catalogue_of(evaluation.data_sha256) else (),
    )
    manifest = export_bundle(
        model, evaluation, bundle, version=version, training=provenance.model_dump(mode="json")
    )
    draw_reliability(evaluation.calibration, bundle / RELIABILITY)
    write_whole(bundle / CARD, write_card(manifest))
    log.info("bundle_written", version=version, model=manifest.model.sha256)


@app.command()
def quantise(
    data: Data,
    bundle: Bundle,
    films: Annotated[int, typer.Option(min=1, help="Films that ranges are taken from.")] = 100,
    cache: Cache = Path("build"),
) -> None:
    """Put an eight-bit network into a bundle, for `engine_precision = "int8"`, if it passes the gate."""
    rows = datasets.read_rows(data)
    learnt_N = np.flatnonzero([row.trainable for row in rows])
    chosen_N = np.random.default_rng(0).permutation(learnt_N)[:films]
    parity = quantise_bundle(bundle, datasets.load_inputs(data, rows, cache)[chosen_N])
    log.info(
        "quantised", films=len(chosen_N), worst_logit=round(parity.logit, 4), worst_map=round(parity.cam, 4)
    )


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
    """Train, evaluate, test the maps and export, one after the other."""
    train(data, run, config, cache=cache)
    evaluate(data, run, cache)
    explain(data=data, run=run, bundle=None, split="dev", films=_SAMPLE, seed=0, cache=cache)
    export(data, run, bundle, version)


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
