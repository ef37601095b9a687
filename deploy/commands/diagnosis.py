"""`doctor` and `support-bundle`: find out what does not work, and take it to somebody else."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Operate")(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK", help="Only this check; may be repeated.")
    ] = None,
) -> None:
    """Check everything that a study passes. Exit code 1: something is to be looked at; 2: it fails."""
    from deploy.doctor.examine import doctor as run_doctor

    raise typer.Exit(run_doctor(as_json=as_json, only=only or ()))
