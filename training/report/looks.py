"""The pictures of what a run's network looks at, drawn when it ends, so that the page needs no weights."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from training.report import maps, networks
from training.report.maps import Shown
from training.report.pictures import save, style
from training.sweep import runs

ACTIVATIONS = "activations.png"


def saliency_name(number: int) -> str:
    """Picture of a film's saliency; films are counted from 1."""
    return f"film-{number}-saliency.png"


def map_name(number: int) -> str:
    """Picture of a film's class activation map; only DenseNet-121 has it."""
    return f"film-{number}-map.png"


def keep(run: Path) -> None:
    """Draw phantoms into a run's directory, unless it has their pictures or has no weights.

    Raises:
        ConfigurationError: the weights are of another network.
    """
    if (run / runs.LOOKS).exists() or not (run / runs.BEST).exists():
        return
    with tempfile.TemporaryDirectory(dir=run) as begun:
        draw(run, maps.phantom_films(), Path(begun) / runs.LOOKS)
        (Path(begun) / runs.LOOKS).replace(run / runs.LOOKS)  # whole, or not there


def draw(run: Path, films: Sequence[Shown], folder: Path) -> None:
    """Draw what the network of the run's best epoch looks at.

    Args:
        run: its directory, with weights.
        films: what is shown.
        folder: for the pictures; what it held is removed.

    Raises:
        ConfigurationError: the run has no weights, or those of another network.
    """
    network, size = networks.load_best(run), runs.read_configuration(run).system.size
    style()
    shutil.rmtree(folder, ignore_errors=True)
    found = maps.explanations(network, films, size)
    scale = maps.full_scale_of(found)
    for number, (shown, seen) in enumerate(zip(films, found, strict=True), 1):
        save(maps.saliency_figure(shown, seen), folder / saliency_name(number))
        if seen.evidence_hw is not None:
            save(maps.evidence_figure(shown, seen.evidence_hw, scale), folder / map_name(number))
    if networks.has_map(network):
        save(maps.activation_figure(network, films[0], size), folder / ACTIVATIONS)
