"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.settings import TrainingSettings, read_settings

Data = Annotated[Path, typer.Option(help="Folder with the catalogue `manifest.csv` and its films.")]
Run = Annotated[Path, typer.Option(help="Run directory: configuration, log, checkpoint, evaluation.")]
Cache = Annotated[Path, typer.Option(help="Folder for films that went through the recipe.")]
Config = Annotated[
    Path | None, typer.Option(help="TOML file with training settings; the shipped bundle's without one.")
]
Seed = Annotated[int | None, typer.Option(help="Instead of the configuration's.")]
Bundle = Annotated[Path, typer.Option(help="Directory of the bundle.")]
Version = Annotated[str, typer.Option(help="Version of the bundle.")]
DEFAULT = Path(__file__).parents[1] / "configs" / "default.toml"


def settings_of(config: Path | None, seed: int | None) -> TrainingSettings:
    """What the file says, or the shipped bundle's, with the seed that the command names."""
    settings = read_settings(config or DEFAULT)
    return settings if seed is None else settings.model_copy(update={"seed": seed})
