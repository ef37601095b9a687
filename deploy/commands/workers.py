"""`drain`: stop taking studies, in order."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Operate")(drain)


def drain(
    restart: Annotated[
        bool, typer.Option("--restart", help="Let `up` or the container engine start them again.")
    ] = False,
    patience: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for them.")] = 600.0,
) -> None:
    """Have all workers take no more studies, finish theirs and end. The node goes on receiving.

    Exit code 1 if no worker heard it, or one did not end in time.
    """
    from deploy.drain import drain_workers
    from worker.settings import load_settings

    raise typer.Exit(drain_workers(load_settings(), restart=restart, patience=patience))
