"""`covariance config`: look at the settings, and at what they point to, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

config = typer.Typer(no_args_is_help=True, help="Look at the settings before anything runs.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(config, name="config", rich_help_panel="Set up")


@config.command()
def check(
    file: Annotated[Path | None, typer.Argument(help="Settings file; else --config.")] = None,
    connect: Annotated[
        bool, typer.Option("--connect", help="Also try the destinations, database and broker.")
    ] = False,
) -> None:
    """Say whether the settings can work. Exit code 2 if they cannot, 1 if a peer does not answer."""
    from deploy.configuration import check_settings
    from dicom_node.settings import use_file

    if file is not None:
        use_file(file)
    raise typer.Exit(check_settings(connect=connect))


@config.command()
def show() -> None:
    """Print the settings in force as TOML, defaults included and secrets hidden."""
    from deploy.configuration import effective
    from worker.settings import load_settings

    typer.echo(effective(load_settings()), nl=False)


@config.command()
def example() -> None:
    """Print a commented settings file that holds every setting at its default."""
    from deploy.configuration import example_file

    typer.echo(example_file(), nl=False)
