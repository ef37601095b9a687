"""`drain`: stop taking studies, in order."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Operate")(drain)


def drain(
    restart: Annotated[bool, typer.Option("--restart", help="Have `up` start them again.")] = False,
    patience: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for them.")] = 600.0,
) -> None:
    """Have all workers take no more studies, finish theirs and end. The node goes on receiving.

    For workers of `up`; systemd wants RestartPreventExitStatus=3. Containers are started again whatever is
    said here: stop or scale those.

    Exit code 1 if no worker heard it, or one did not end in time.
    """
    from deploy.drain import drain_workers
    from worker.settings import load_settings

    raise typer.Exit(drain_workers(load_settings(), restart=restart, patience=patience))
