"""`migrate` and `health`: what a platform runs before and beside the processes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Process(StrEnum):
    """The processes of the stack."""

    NODE = "node"
    WORKER = "worker"
    DELIVER = "deliver"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Set up")(migrate)
    app.command(rich_help_panel="Serve")(health)


def migrate() -> None:
    """Bring the database to the schema of this version; running it again does nothing."""
    from worker.ledger import open_ledger
    from worker.settings import load_settings

    open_ledger(load_settings(), migrate=True).close()
    typer.echo("The database has this version's schema.")


def health(
    process: Annotated[Process, typer.Argument(help="Which process of this machine.")],
) -> None:
    """Say whether a process on this machine can work. Exit code 1 if it cannot now."""
    from deploy.health import ask
    from worker.settings import load_settings

    typer.echo(f"{process.value}: {ask(load_settings(), process.value)}")
