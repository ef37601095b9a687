"""`make train-smoke`: every system a few steps, the page, a bundle, and a film scored with that bundle.

It asks whether the whole of training works, by the commands that its user has. It says nothing of what a
network is worth: the films are few and small, and nothing is learnt in so few steps.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path

from tests.training.conftest import make_catalogue
from training.films.datasets import CATALOGUE
from training.sweep.systems import SYSTEMS
from worker.settings import DEFAULT_BUNDLE

ROOT = Path(__file__).parent.parent.parent
WORK = ROOT / "build" / "train-smoke"
FILMS = ROOT.parent / "shared" / "data" / "cxr"
EACH = {"train": 5, "dev": 4, "test": 4}
"""Films of each class in each split."""
SIZE = 64
# From the shipped weights: a network that has hardly learnt decides nothing, and export refuses it.
TRAINING = f"""
init = "bundle:{DEFAULT_BUNDLE}"
films_per_epoch = 12
batch = 4
learning_rate = 1e-4
average = 0.0
threads = 1
sampling = "balanced"
stages = [{{ size = 64, epochs = 2 }}]
weights = {{ covid = 1.0, opacity = 0.5, view = 0.2, findings = 0.5 }}
"""


def main() -> None:
    started = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    data, films = (
        _few_real_films() if FILMS.is_dir() else (make_catalogue(WORK / "films").folder, "generated")
    )
    names = _small_systems(WORK / "systems.toml")
    (WORK / "training.toml").write_text(TRAINING, encoding="utf-8")
    runs, run, bundle = WORK / "runs", WORK / "run", WORK / "bundle"

    def training(command: str, *arguments: object) -> None:
        _do(sys.executable, "-m", "training", command, "--data", data, *arguments)

    training("reproduce", "--runs", runs, "--systems", WORK / "systems.toml", "--cache", WORK)
    done = sorted(path.parent.name for path in runs.glob("*/predictions.csv"))
    if done != sorted(names):
        raise SystemExit(f"Only {', '.join(done)} of the systems are done.")
    training("report", "--runs", runs, "--out", WORK / "report")
    _systems_in(WORK / "report" / "metrics.csv", names)
    training("train", "--run", run, "--config", WORK / "training.toml", "--cache", WORK)
    training("evaluate", "--run", run, "--cache", WORK)
    training("export", "--run", run, "--bundle", bundle, "--version", "0.0.1")
    film = next((data / "images").iterdir())
    _do(Path(sys.executable).parent / "covariance", "score", film, "--json", bundle=bundle)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(names)} systems on {films} films, a page and a bundle that scores: {minutes:.1f} min")  # noqa: T201


def _do(*command: object, bundle: Path | None = None) -> None:
    # Films so small gain nothing from a second thread, and on a busy machine two wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if bundle:
        environment["COVARIANCE_WORKER__BUNDLE"] = str(bundle)
    words = [str(word) for word in command]
    print("$", *words[1:] if words[0] == sys.executable else words, flush=True)  # noqa: T201
    subprocess.run(words, check=True, cwd=ROOT, env=environment)


def _few_real_films() -> tuple[Path, str]:
    """A catalogue of the first films of each class and split, those that may be learnt from first."""
    with (FILMS / CATALOGUE).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        records = [r for r in reader if r["seedlike"] == "1"]
    records.sort(key=lambda r: r["licence_class"] not in {"permissive", "repo-claimed CC BY 4.0"})
    taken, counts = [], Counter[tuple[str, str]]()
    for record in records:
        kind = record["split"], record["target"]
        if counts[kind] < EACH[record["split"]]:
            counts[kind] += 1
            taken.append(record)
    data = WORK / "films"
    (data / "images").mkdir(parents=True)
    for record in taken:
        shutil.copyfile(FILMS / record["file"], data / record["file"])
    with (data / CATALOGUE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, reader.fieldnames or ())
        writer.writeheader()
        writer.writerows(taken)
    return data, f"{len(taken)} real"


def _small_systems(path: Path) -> list[str]:
    """The report's systems for small films and one epoch; all else is theirs."""
    systems = tomllib.loads(SYSTEMS.read_text(encoding="utf-8"))
    small = {"size": SIZE, "epochs": 1, "batch": 4}
    lines: list[str] = []
    for name, table in systems.items():
        lines.append(f"[{name}]")
        for key, value in {**table, **small}.items():
            text = str(value).lower() if isinstance(value, bool) else repr(value)
            lines.append(f"{key} = {text}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(systems)


def _systems_in(path: Path, names: list[str]) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        there = {row["system"] for row in csv.DictReader(file)}
    if missing := set(names) - there:
        raise SystemExit(f"{path} says nothing of {', '.join(sorted(missing))}.")


main()
